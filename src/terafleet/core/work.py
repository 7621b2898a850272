"""Work units, attempts and batches: their states, their size, and the rule that cuts a batch."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from terafleet.core.ids import WorkUnitId
from terafleet.core.units import divide_up


class BatchState(StrEnum):
    """The API's own words; docs/states/batch.md has a sentence for each."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


BATCH_ENDS = frozenset(
    {BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED}
)


class UnitState(StrEnum):
    """Where a work unit is; docs/states/work-unit.md has a sentence for each."""

    WAITING = "waiting"
    RUNNING = "running"
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


Figure = Annotated[int, Meta(ge=0, le=10**12)]
"""In ms, mWh or tokens: no attempt takes so much, and the sum of millions still has 63 bits."""


class AttemptResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an attempt that gave an output came to, as its car says."""

    unit_id: WorkUnitId
    answers: Figure
    answers_failed: Figure
    prompt_tokens: Figure
    completion_tokens: Figure
    energy_mwh: Figure
    runtime_ms: Figure


CHARACTERS_PER_TOKEN = 4
"""A token of English text is about four characters (OpenAI's own rule of thumb)."""

REQUEST_OVERHEAD_TOKENS = 4
"""What a request costs beyond its text."""


def predicted_cost(input_characters: int, output_tokens: int) -> int:
    """The predicted work of a request, in tokens."""
    tokens = divide_up(input_characters, CHARACTERS_PER_TOKEN)
    return REQUEST_OVERHEAD_TOKENS + tokens + output_tokens


UNIT_TARGET_MS = 20_000
"""A unit's aim on a typical car: short against a stay, long against a grant."""

UNIT_REQUESTS_MAX = 512
"""No unit is larger, whatever its cost, so that its output stays a few megabytes."""

UNIT_INPUT_BYTES_MAX = 4 * 1024 * 1024
"""No unit's input is larger, but for a single request that is."""

UNITS_PER_SLOT = 12
"""A batch is cut finely enough that every slot of the fleet gets about so many units."""

UNIT_COST_MIN = 64
"""Below it a unit's own handling would cost more than its work."""


def unit_cost(total_cost: int, tokens_per_s: int, slots: int) -> int:
    """The size to cut a batch's units to, in tokens of predicted work.

    `tokens_per_s` is what a typical slot of the fleet does, `slots` how many could run the batch.
    """
    by_time = tokens_per_s * UNIT_TARGET_MS // 1_000
    by_share = divide_up(total_cost, max(1, slots) * UNITS_PER_SLOT)
    return max(UNIT_COST_MIN, min(by_time, by_share))


def cut(costs: Sequence[int], sizes: Sequence[int], cost_per_unit: int) -> list[range]:
    """Cut requests, in their order, into units of about `cost_per_unit` tokens.

    `costs` are predicted tokens and `sizes` input bytes of each request; the ranges cover all
    of them without gaps. A request that is larger than a unit makes a unit of its own.
    """
    units = []
    begin = cost = size = 0
    for index, (request_cost, request_size) in enumerate(zip(costs, sizes, strict=True)):
        is_full = (
            cost + request_cost > cost_per_unit
            or size + request_size > UNIT_INPUT_BYTES_MAX
            or index - begin >= UNIT_REQUESTS_MAX
        )
        if is_full and index > begin:
            units.append(range(begin, index))
            begin, cost, size = index, 0, 0
        cost += request_cost
        size += request_size
    if begin < len(costs):
        units.append(range(begin, len(costs)))
    return units
