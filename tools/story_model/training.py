"""Trains a network with AdamW (Loshchilov and Hutter, 2019) and keeps where it stands on disk."""

import ctypes
import math
import os
from pathlib import Path

import msgspec
import numpy as np

from tools.story_model.shape import Numbers, Shape, decayed, random_weights

_FIRST_DECAY, _SECOND_DECAY = 0.9, 0.98
_EPSILON = 1e-8
_GRADIENT_LENGTH_MAX = 1.0
_WEIGHT_DECAY = 0.05


class Wave(msgspec.Struct, frozen=True):
    """Some steps in which the learning rate rises quickly to `rate` and then falls to zero."""

    first: int
    steps: int
    rate: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how fast the network learns, in two waves.

    The second and smaller one begins with fresh means of the gradients; it mends what the first
    left undone (Loshchilov and Hutter, 2017: warm restarts).
    """

    steps: int
    rate: float = 8e-3
    second_rate: float = 3e-3
    first_share: float = 0.7
    warmup_steps: int = 150

    def wave_at(self, step: int) -> Wave:
        """The wave that a step belongs to."""
        middle = round(self.steps * self.first_share)
        if step < middle:
            return Wave(0, middle, self.rate)
        return Wave(middle, self.steps - middle, self.second_rate)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step; after the rise it follows half a cosine wave."""
        wave = self.wave_at(step)
        age = step - wave.first
        if age < self.warmup_steps:
            return wave.rate * (age + 1) / self.warmup_steps
        done = (age - self.warmup_steps) / max(1, wave.steps - self.warmup_steps)
        return wave.rate * (1 + math.cos(math.pi * done)) / 2


class Trainee:
    """The weights in training, with the running means of their gradients."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.step = 0
        self.weights = random_weights(shape, seed)
        self.gradient = self.weights.zeros()
        self._mean = np.zeros_like(self.weights.row)
        self._square = np.zeros_like(self.weights.row)
        self._decayed = decayed(shape)

    def learn(self, plan: Plan) -> None:
        """Take one step down the gradient."""
        age = self.step - plan.wave_at(self.step).first
        if age == 0:
            self._mean[:] = self._square[:] = 0
        row = self.gradient.row
        length = float(np.linalg.norm(row))
        row *= min(1.0, _GRADIENT_LENGTH_MAX / (length + _EPSILON))
        _blend(self._mean, row, _FIRST_DECAY)
        _blend(self._square, row * row, _SECOND_DECAY)
        rate = plan.rate_at(self.step)
        mean = self._mean / (1 - _FIRST_DECAY ** (age + 1))
        spread = np.sqrt(self._square / (1 - _SECOND_DECAY ** (age + 1))) + _EPSILON
        weights = self.weights.row
        weights -= rate * (mean / spread + _WEIGHT_DECAY * self._decayed * weights)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write all that is needed to go on; the file is whole or not there."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                step=self.step,
                weights=self.weights.row,
                mean=self._mean,
                square=self._square,
            )
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on where the trainee that wrote `path` stood."""
        with np.load(path) as saved:
            self.step = int(saved["step"])
            self.weights.row[:] = saved["weights"]
            self._mean[:] = saved["mean"]
            self._square[:] = saved["square"]


def keep_memory() -> None:
    """Ask the C library to keep freed memory, as each step needs the same again.

    Without it more than a third of the time goes into giving pages back and taking them anew.
    The numbers are those of `mallopt(3)` of glibc; other libraries are left alone.
    """
    trim_threshold, mmap_threshold = -1, -3
    if "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**30)


def _blend(mean: Numbers, news: Numbers, decay: float) -> None:
    mean *= decay
    mean += (1 - decay) * news
