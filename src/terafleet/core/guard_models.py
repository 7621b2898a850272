"""The models of a car: what stands in the runtime's memory, and what the fleet wants to stay there.

It knows no permits: the guard says when models may be loaded.
"""

from collections.abc import Callable, Iterable

from terafleet.core.guard_effects import AnyGuardEffect, PrepareModel
from terafleet.core.ids import ModelId

WARM_AGAIN_MS = 10_000
"""How long models that are only kept stay away after the runtime ended by itself.

One that ends it each time shall not keep the car busy; what a lease needs is loaded at once.
"""


class CarModels:
    """The models of one runtime, which is up from the first `prepare` until it is gone."""

    def __init__(self, tell: Callable[[AnyGuardEffect], None]) -> None:
        self._tell = tell
        self._models: dict[ModelId, bool] = {}
        self._warm: dict[ModelId, None] = {}
        self._warm_from_ms = 0
        self._typical_ms: dict[ModelId, int] = {}
        self.is_runtime_up = False

    def forget_process(self) -> None:
        """The runtime ended with the agent's process."""
        self.is_runtime_up = False
        self._models.clear()
        self._warm.clear()
        self._warm_from_ms = 0
        self._typical_ms.clear()

    def is_loaded(self, model_id: ModelId) -> bool:
        """Whether a model stands in memory."""
        return self._models.get(model_id, False)

    def prepare(self, model_id: ModelId) -> None:
        """Have a model loaded if it is not, and is not on its way."""
        if model_id not in self._models:
            self._models[model_id] = False
            self.is_runtime_up = True
            self._tell(PrepareModel(model_id))

    def ready(self, model_id: ModelId) -> bool:
        """A model was loaded; whether anybody waited for it."""
        if model_id in self._models:
            self._models[model_id] = True
            return True
        return False

    def unavailable(self, model_id: ModelId) -> bool:
        """A model can't be had or loaded; whether it was one to be kept, which it is no more."""
        self._models.pop(model_id, None)
        if model_id not in self._warm:
            return False
        # Else it would be tried again and again.
        del self._warm[model_id]
        return True

    def runtime_gone(self) -> None:
        """The runtime's process is gone, and all models with it."""
        self.is_runtime_up = False
        self._models.clear()

    def warm_later(self, now_ms: int) -> None:
        """The runtime ended by itself: what is only kept shall wait."""
        self._warm_from_ms = now_ms + WARM_AGAIN_MS

    def want_warm(self, model_ids: Iterable[ModelId]) -> None:
        """These models, and no others, are to stay in memory."""
        self._warm = dict.fromkeys(model_ids)

    def keep_warm(self, now_ms: int) -> None:
        """Load what is to stay in memory, whether or not it is needed."""
        if now_ms >= self._warm_from_ms:
            for model_id in self._warm:
                self.prepare(model_id)

    def warm_due_ms(self) -> int | None:
        """When what is to stay in memory is tried again, if something lacks."""
        return None if self._warm.keys() <= self._models.keys() else self._warm_from_ms

    def learn(self, model_id: ModelId, runtime_ms: int) -> None:
        """How long attempts of a model take here: a moving average over about four."""
        known_ms = self._typical_ms.get(model_id, runtime_ms)
        self._typical_ms[model_id] = (3 * known_ms + runtime_ms) // 4

    def typical_ms(self, model_id: ModelId) -> int:
        """How long an attempt takes here, 0 where nobody knows."""
        return self._typical_ms.get(model_id, 0)

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        assert not self._models or self.is_runtime_up
