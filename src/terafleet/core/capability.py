"""What a vehicle can run, and what a model needs; the filter between the two."""

import msgspec

from terafleet.core.ids import ModelId


class Capability(msgspec.Struct, frozen=True):
    """What one vehicle offers.

    `memory_mb` is what the owner lends to the runtime; `slots` how many attempts run at once;
    `models` which models lie on its disk, checked; `loaded` which of them stand in memory.
    """

    runtimes: tuple[str, ...]
    memory_mb: int
    slots: int
    models: tuple[ModelId, ...] = ()
    device: str = ""
    loaded: tuple[ModelId, ...] = ()


class ModelNeeds(msgspec.Struct, frozen=True):
    """What a model asks of a vehicle; `memory_mb` with its working memory at full batch."""

    model_id: ModelId
    name: str
    runtime: str
    memory_mb: int
    endpoints: tuple[str, ...]


class CapabilityClass(msgspec.Struct, frozen=True):
    """Vehicles that are alike to the filter; there are few of them in any fleet."""

    runtimes: tuple[str, ...]
    memory_mb: int
    models: tuple[ModelId, ...]
    loaded: tuple[ModelId, ...] = ()


def capability_class(capability: Capability) -> CapabilityClass:
    """The class of a vehicle: memory rounded down to 256 MB so that classes stay few."""
    return CapabilityClass(
        runtimes=tuple(sorted(capability.runtimes)),
        memory_mb=capability.memory_mb // 256 * 256,
        models=tuple(sorted(capability.models)),
        loaded=tuple(sorted(capability.loaded)),
    )


def is_feasible(offered: CapabilityClass, needs: ModelNeeds) -> bool:
    """Whether a vehicle of the class can ever run the model."""
    return needs.runtime in offered.runtimes and needs.memory_mb <= offered.memory_mb


def what_lacks(offered: CapabilityClass, needs: ModelNeeds) -> str:
    """The first thing that the class lacks for the model, in words, or empty."""
    if needs.runtime not in offered.runtimes:
        return f"lacks the runtime {needs.runtime}"
    if needs.memory_mb > offered.memory_mb:
        return f"lends {offered.memory_mb} MB of memory, {needs.memory_mb} MB are needed"
    return ""
