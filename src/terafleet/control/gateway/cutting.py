"""Cuts a batch: reads its input file, stores the inputs of its work units, and submits them.

The inputs of all units lie in one object one behind the other, each request as a line of JSON;
requests of one model stand together, in the order of the file.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from itertools import chain

import msgspec

from terafleet.control.gateway.context import GatewayContext, ShardRefused
from terafleet.control.gateway.lines import RefusedLine, TakenLine, check_line
from terafleet.control.gateway.plan import Plan, plan_name, read_plan, write_plan
from terafleet.control.gateway.served_models import Unserved, served_model
from terafleet.control.gateway.splitting import Line, read_lines
from terafleet.control.gateway.stored_files import let_go, object_name
from terafleet.control.ports import Catalogue, ObjectMissing, Objects
from terafleet.core.events import UnitSpec
from terafleet.core.ids import ModelId, input_name
from terafleet.core.reasons import Refused
from terafleet.core.work import cut, unit_cost
from terafleet.protocol.openai import BatchError, BatchErrors
from terafleet.protocol.shard import Answered, Cut, RejectBatch, SubmitUnits

ERRORS_TOLD = 20

_OVER = frozenset({Refused.BATCH_UNKNOWN, Refused.BATCH_ENDED})


async def handle_cut(context: GatewayContext, work: Cut) -> None:
    """Cut a batch and answer with `SubmitUnits`, or with `RejectBatch` if none of it can be done.

    Safe to do twice: what is cut already is submitted again as it is. Raises ShardUnavailable,
    ShardRefused, ObjectsFull; then it is to be done again.
    """
    known = await read_plan(context.objects, work.batch_id)
    plan = known or await _cut_file(context, work)
    question: SubmitUnits | RejectBatch
    if isinstance(plan, Plan):
        question = SubmitUnits(work.batch_id, plan.units, len(plan.refused))
    else:
        question = RejectBatch(work.batch_id, msgspec.json.encode(plan))
    try:
        await context.ask(question, Answered)
    except ShardRefused as refusal:
        if refusal.answered.refused not in _OVER:
            raise
        # The batch ended while it was being cut; nobody else knows of what was stored for it.
        if known is None:
            await context.objects.delete(input_name(work.batch_id))
            await context.objects.delete(plan_name(work.batch_id))
    await let_go(context, work.input_file_id, work.batch_id)


async def _cut_file(context: GatewayContext, work: Cut) -> Plan | BatchErrors:
    intake = Intake(context.catalogue, work.endpoint, context.limits.line_bytes_max)
    name = input_name(work.batch_id)
    try:
        stored = await context.objects.write(
            name, _inputs(context.objects, object_name(work.input_file_id), intake)
        )
    except ObjectMissing:
        message = "The input file was deleted before the batch could begin."
        return BatchErrors((BatchError("file_not_found", message, "input_file_id"),))
    if not intake.groups:
        await context.objects.delete(name)
        told = intake.refused[:ERRORS_TOLD]
        return BatchErrors(
            tuple(BatchError(e.code, e.message, e.param, e.line_number) for e in told)
        )
    total_cost = sum(sum(group.costs) for group in intake.groups)
    units = _units(intake.groups, unit_cost(total_cost, work.tokens_per_s, work.slots))
    assert sum(unit.length for unit in units) == stored.size_bytes
    digests = await _digests(context.objects, name, [unit.length for unit in units])
    plan = Plan(
        units=tuple(
            msgspec.structs.replace(unit, digest=digest)
            for unit, digest in zip(units, digests, strict=True)
        ),
        custom_ids=tuple(chain.from_iterable(group.custom_ids for group in intake.groups)),
        line_numbers=tuple(chain.from_iterable(group.line_numbers for group in intake.groups)),
        refused=tuple(intake.refused),
    )
    await write_plan(context.objects, work.batch_id, plan)
    return plan


class Group:
    """The requests of one model in the order of the file, with their costs and sizes."""

    def __init__(self, model_id: ModelId) -> None:
        """Begin empty."""
        self.model_id = model_id
        self.custom_ids: list[str] = []
        self.line_numbers: list[int] = []
        self.costs: list[int] = []
        self.sizes: list[int] = []

    def add(self, taken: TakenLine) -> None:
        """Append a request; its size is with the end of its line."""
        self.custom_ids.append(taken.custom_id)
        self.line_numbers.append(taken.line_number)
        self.costs.append(taken.cost)
        self.sizes.append(len(taken.body_bytes) + 1)


class Intake:
    """Sorts the lines of an input file: requests by model, and lines that are refused."""

    def __init__(self, catalogue: Catalogue, endpoint: str, line_bytes_max: int) -> None:
        """Names of models are looked up once each."""
        self.groups: list[Group] = []
        self.refused: list[RefusedLine] = []
        self._catalogue = catalogue
        self._endpoint = endpoint
        self.line_bytes_max = line_bytes_max
        self._found: dict[str, Group | Unserved] = {}

    def take(self, line: Line) -> bytes:
        """Sort a line; the bytes to write at once, which are those of the first group."""
        checked = check_line(line, self.line_bytes_max)
        if isinstance(checked, RefusedLine):
            self.refused.append(checked)
            return b""
        if checked.endpoint != self._endpoint:
            words = f"It asks for {checked.endpoint}, the batch for {self._endpoint}."
            self.refused.append(_refused(checked, Unserved("mismatched_endpoint", words), "url"))
            return b""
        group = self._group(checked.model)
        if isinstance(group, Unserved):
            self.refused.append(_refused(checked, group, "model"))
            return b""
        group.add(checked)
        return checked.body_bytes + b"\n" if group is self.groups[0] else b""

    def body(self, line: Line) -> bytes:
        """The bytes of a line that was taken before."""
        checked = check_line(line, self.line_bytes_max)
        assert isinstance(checked, TakenLine), "a file never changes"
        return checked.body_bytes + b"\n"

    def _group(self, name: str) -> Group | Unserved:
        known = self._found.get(name)
        if known is not None:
            return known
        served = served_model(self._catalogue, name, self._endpoint)
        if isinstance(served, Unserved):
            self._found[name] = served
            return served
        group = Group(served)
        self._found[name] = group
        self.groups.append(group)
        return group


def _refused(taken: TakenLine, why: Unserved, param: str) -> RefusedLine:
    return RefusedLine(
        line_number=taken.line_number,
        code=why.code,
        message=f"Line {taken.line_number}: {why.message}",
        param=param,
        custom_id=taken.custom_id,
        endpoint=taken.endpoint,
    )


async def _inputs(objects: Objects, file_name: str, intake: Intake) -> AsyncIterator[bytes]:
    """All inputs: the first model's while the file is sorted, each other's by one more look.

    Raises ObjectMissing.
    """
    async for lines in read_lines(objects, file_name, intake.line_bytes_max):
        yield b"".join(map(intake.take, lines))
    for group in intake.groups[1:]:
        wanted = set(group.line_numbers)
        async for lines in read_lines(objects, file_name, intake.line_bytes_max):
            yield b"".join(intake.body(line) for line in lines if line.number in wanted)


def _units(groups: Sequence[Group], cost_per_unit: int) -> list[UnitSpec]:
    """The units without their digests, in the order of their inputs."""
    units = []
    offset = 0
    for group in groups:
        for part in cut(group.costs, group.sizes, cost_per_unit):
            length = sum(group.sizes[part.start : part.stop])
            cost = sum(group.costs[part.start : part.stop])
            units.append(UnitSpec(group.model_id, len(part), cost, offset, length, b""))
            offset += length
    return units


async def _digests(objects: Objects, name: str, lengths: Sequence[int]) -> list[bytes]:
    """The SHA-256 of each piece of an object; the pieces have these lengths and cover all of it."""
    digests = []
    following = iter(lengths)
    hasher, rest = hashlib.sha256(), next(following)
    async for piece in objects.stream(name):
        view = memoryview(piece)
        while view:
            part = view[:rest]
            hasher.update(part)
            view, rest = view[len(part) :], rest - len(part)
            if rest == 0:
                digests.append(hasher.digest())
                hasher, rest = hashlib.sha256(), next(following, 0)
    return digests
