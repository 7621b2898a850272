"""What a vehicle can run, and what a model needs; the filter between the two."""

import msgspec

from terafleet.core.ids import ModelId

LIVE, BATCH = "live", "batch"
WORK_KINDS = (LIVE, BATCH)
"""Work that somebody waits for at this moment, and work that can wait."""


class Capability(msgspec.Struct, frozen=True):
    """What one vehicle offers.

    `memory_mb` is what the owner lends to the runtime; `slots` how many attempts run at once;
    `models` which models lie on its disk, checked; `loaded` which of them stand in memory. Its
    owner lets it do work of these `kinds` at these `endpoints`; no endpoint named is all.
    `isolation` is how well its runtime is walled in, as checked (`isolation`), empty if unknown.
    """

    runtimes: tuple[str, ...]
    memory_mb: int
    slots: int
    models: tuple[ModelId, ...] = ()
    device: str = ""
    loaded: tuple[ModelId, ...] = ()
    kinds: tuple[str, ...] = WORK_KINDS
    endpoints: tuple[str, ...] = ()
    isolation: str = ""


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
    kinds: tuple[str, ...] = WORK_KINDS
    endpoints: tuple[str, ...] = ()

    @property
    def does_batches(self) -> bool:
        """Whether owners of such vehicles want work that can wait."""
        return BATCH in self.kinds

    @property
    def does_sessions(self) -> bool:
        """Whether owners of such vehicles want live work."""
        return LIVE in self.kinds


def capability_class(capability: Capability) -> CapabilityClass:
    """The class of a vehicle: memory rounded down to 256 MB so that classes stay few."""
    return CapabilityClass(
        runtimes=tuple(sorted(capability.runtimes)),
        memory_mb=capability.memory_mb // 256 * 256,
        models=tuple(sorted(capability.models)),
        loaded=tuple(sorted(capability.loaded)),
        kinds=tuple(kind for kind in WORK_KINDS if kind in capability.kinds),
        endpoints=tuple(sorted(set(capability.endpoints))),
    )


def is_feasible(offered: CapabilityClass, needs: ModelNeeds) -> bool:
    """Whether a vehicle of the class can ever run the model, at any endpoint that it has."""
    return (
        needs.runtime in offered.runtimes
        and needs.memory_mb <= offered.memory_mb
        and (not offered.endpoints or set(needs.endpoints).issubset(offered.endpoints))
    )


def what_lacks(offered: CapabilityClass, needs: ModelNeeds) -> str:
    """The first thing that the class lacks for the model, in words, or empty."""
    if needs.runtime not in offered.runtimes:
        return f"lacks the runtime {needs.runtime}"
    if needs.memory_mb > offered.memory_mb:
        return f"lends {offered.memory_mb} MB of memory, {needs.memory_mb} MB are needed"
    if offered.endpoints and not set(needs.endpoints).issubset(offered.endpoints):
        return f"has an owner who wants work at {', '.join(offered.endpoints)} only"
    return ""
