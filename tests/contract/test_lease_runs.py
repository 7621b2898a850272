"""A lease's attempts, one after the other: what is told together, and what ends them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terafleet.agent.ports import RuntimeFailure, RuntimeResult
from terafleet.agent.results import address_name
from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.ids import LeaseId, ReceiptId, output_name
from terafleet.core.reasons import Failure
from terafleet.protocol.agent import INLINE_BYTES_MAX
from terafleet.protocol.parcel import unpack
from tests.contract.agent_stage import FakeGateway, until
from tests.contract.performer_stage import INPUT, LINE, Stage, large, put_path

UNITS = (1, 2, 3)
TOO_SHORT = RuntimeResult("1-2", LINE * 2, 30, 5, 40)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with FakeGateway().open() as gateway, Stage(tmp_path, gateway).open() as opened:
        await opened.loaded()
        opened.events.clear()
        yield opened


def told(stage: Stage) -> list[list[int] | tuple[int, Failure]]:
    """What the guard heard of attempts, in its order: units with outputs, or one that broke."""
    found: list[list[int] | tuple[int, Failure]] = []
    for event in stage.events:
        if isinstance(event, ev.AttemptsFinished):
            found.append([result.unit_id for result in event.results])
        elif isinstance(event, ev.AttemptBroke):
            found.append((event.unit_id, event.failure))
    return found


async def until_ended(stage: Stage) -> None:
    """Wait until no lease has an attempt on its way."""
    await until(lambda: len(stage.attempts) == 0)


async def test_what_ends_at_once_is_told_together(stage: Stage) -> None:
    outputs = {unit: LINE * 2 + b'{"status_code":20%d}\n' % unit for unit in UNITS}
    for unit, output in outputs.items():
        stage.runtime.answer_at_once(f"1-{unit}", output)
    stage.grant(units=UNITS)
    stage.perform(stage.start_of(units=UNITS))
    assert len(stage.attempts) == 1
    await until_ended(stage)
    assert stage.ran() == ["1-1", "1-2", "1-3"]
    (event,) = stage.of(ev.AttemptsFinished)
    assert told(stage) == [[1, 2, 3]]
    assert unpack(event.parcel) == outputs
    assert stage.attempts.figures.finished == 3


async def test_no_result_is_held_back_while_the_next_attempt_runs(stage: Stage) -> None:
    await stage.started(units=UNITS)
    assert told(stage) == []
    stage.runtime.answer("1-1")
    await stage.runs("1-2")
    assert told(stage) == [[1]]
    stage.runtime.answer("1-2")
    await stage.runs("1-3")
    assert told(stage) == [[1], [2]]
    assert len(stage.attempts) == 1
    stage.runtime.answer("1-3")
    await until_ended(stage)
    assert told(stage) == [[1], [2], [3]]


async def test_what_came_together_is_told_when_the_run_first_has_to_wait(stage: Stage) -> None:
    for name in ("1-1", "1-2", "1-4"):
        stage.runtime.answer_at_once(name)
    units = (*UNITS, 4)
    stage.grant(units=units)
    stage.perform(stage.start_of(units=units))
    await stage.runs("1-3")
    assert told(stage) == [[1, 2]]
    stage.runtime.answer("1-3")
    await until_ended(stage)
    assert told(stage) == [[1, 2], [3, 4]]


async def test_no_result_is_held_back_while_an_input_comes(stage: Stage) -> None:
    stage.gateway.objects["/in/1"] = INPUT
    await stage.started(units=(1, 2), payload=b"", input_address="/in/1")
    stage.gateway.gate.clear()
    asked = len(stage.gateway.paths())
    stage.runtime.answer("1-1")
    await until(lambda: len(stage.gateway.paths()) > asked)
    assert told(stage) == [[1]]
    stage.gateway.gate.set()
    await stage.runs("1-2")


async def test_each_attempt_has_its_own_time_and_energy(stage: Stage) -> None:
    await stage.started(units=(1, 2))
    await stage.time.pass_ms(100)
    stage.runtime.answer("1-1", cpu_ms=30)
    await stage.runs("1-2")
    await stage.time.pass_ms(250)
    stage.runtime.answer("1-2", cpu_ms=50)
    await until_ended(stage)
    results = [event.results[0] for event in stage.of(ev.AttemptsFinished)]
    assert [(one.runtime_ms, one.energy_mwh) for one in results] == [(100, 30), (250, 50)]
    assert (stage.attempts.figures.cpu_ms, stage.attempts.figures.energy_mwh) == (80, 80)


async def test_a_runtime_that_is_gone_when_the_input_comes_breaks_the_attempt(
    stage: Stage,
) -> None:
    stage.gateway.objects["/in/1"] = INPUT
    await stage.started(units=UNITS, payload=b"", input_address="/in/1")
    stage.gateway.gate.clear()
    asked = len(stage.gateway.paths())
    stage.runtime.answer("1-1")
    await until(lambda: len(stage.gateway.paths()) > asked)
    stage.runtime.crash()
    stage.gateway.gate.set()
    await until_ended(stage)
    assert told(stage) == [[1], (2, Failure.RUNTIME_CRASHED)]


async def test_who_waits_for_an_input_has_no_share_of_what_others_take(stage: Stage) -> None:
    stage.gateway.objects["/in/1"] = INPUT
    await stage.started(lease=1, units=(1, 2), payload=b"", input_address="/in/1")
    name = await stage.started(lease=2, units=(3,))
    stage.gateway.gate.clear()
    asked = len(stage.gateway.paths())
    stage.runtime.answer("1-1")
    await until(lambda: len(stage.gateway.paths()) > asked)
    stage.runtime.used_ms = 100
    stage.runtime.end(name, RuntimeFailure(name, Failure.OUT_OF_MEMORY))
    assert (await stage.heard(ev.AttemptBroke)).energy_mwh == 100
    stage.gateway.gate.set()


async def test_full_parcels_are_told_on_the_way(stage: Stage) -> None:
    units = tuple(range(1, 8))
    output = b'{"status_code":200,"body":"%b"}\n' % (b"x" * (INLINE_BYTES_MAX // 12)) * 3
    for unit in units:
        stage.runtime.answer_at_once(f"1-{unit}", output)
    stage.grant(units=units)
    stage.perform(stage.start_of(units=units))
    await until_ended(stage)
    assert told(stage) == [[1, 2, 3], [4, 5, 6], [7]]
    parcels = [event.parcel for event in stage.of(ev.AttemptsFinished)]
    assert all(len(parcel) <= INLINE_BYTES_MAX for parcel in parcels)
    assert [unit for parcel in parcels for unit in unpack(parcel)] == list(units)


async def test_a_large_output_goes_alone_with_its_address(stage: Stage) -> None:
    for unit, output in zip(UNITS, (LINE * 3, large(), LINE * 3), strict=True):
        stage.runtime.answer_at_once(f"1-{unit}", output)
    stage.grant(units=UNITS)
    stage.perform(stage.start_of(units=UNITS))
    await until_ended(stage)
    assert told(stage) == [[1], [2], [3]]
    assert [bool(event.parcel) for event in stage.of(ev.AttemptsFinished)] == [True, False, True]
    key = (LeaseId(1), ReceiptId(2))
    assert list(stage.store.blob_names("")) == [output_name(*key), address_name(*key)]
    assert stage.store.blob(output_name(*key)) == large()
    assert stage.store.blob(address_name(*key)) == put_path(1, 2).encode()


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (RuntimeFailure("1-2", Failure.OUT_OF_MEMORY), Failure.OUT_OF_MEMORY),
        (TOO_SHORT, Failure.OUTPUT_INCOMPLETE),
    ],
)
async def test_a_failure_ends_the_run_and_what_came_before_is_told_first(
    stage: Stage, outcome: RuntimeResult | RuntimeFailure, failure: Failure
) -> None:
    stage.runtime.answer_at_once("1-1")
    stage.runtime.at_once["1-2"] = outcome
    stage.grant(units=UNITS)
    stage.perform(stage.start_of(units=UNITS))
    await until_ended(stage)
    assert told(stage) == [[1], (2, failure)]
    assert stage.ran() == ["1-1", "1-2"]
    assert (stage.attempts.figures.finished, stage.attempts.figures.broken) == (1, 1)


async def test_after_a_failure_the_rest_may_be_started_anew(stage: Stage) -> None:
    await stage.started(units=UNITS)
    stage.runtime.used_ms = 30
    stage.runtime.answer("1-1", cpu_ms=30)
    await stage.runs("1-2")
    stage.runtime.used_ms = 100
    stage.runtime.end("1-2", RuntimeFailure("1-2", Failure.OUT_OF_MEMORY))
    event = await stage.heard(ev.AttemptBroke)
    assert event.energy_mwh == 70, "its own, not that of the attempt before"
    stage.perform(stage.start_of(units=(3,)))
    await stage.runs("1-3")
    assert len(stage.attempts) == 1
    stage.runtime.answer("1-3")
    await until_ended(stage)
    assert told(stage) == [[1], (2, Failure.OUT_OF_MEMORY), [3]]


async def test_a_stop_in_mid_run_ends_it_and_tells_the_energy(stage: Stage) -> None:
    await stage.started(units=UNITS)
    stage.runtime.used_ms = 30
    stage.runtime.answer("1-1", cpu_ms=30)
    await stage.runs("1-2")
    stage.runtime.used_ms = 90
    stage.perform(fx.StopAttempts(LeaseId(1)), fx.ForgetLease(LeaseId(1)))
    stage.perform(fx.StopAttempts(LeaseId(1)))
    await until_ended(stage)
    await stage.quiet()
    assert [asked for asked in stage.runtime.asked if asked.startswith("stop")] == ["stop 1-2"]
    assert told(stage) == [[1], (2, Failure.STOPPED)]
    assert stage.of(ev.AttemptBroke)[0].energy_mwh == 60
    assert stage.ran() == ["1-1", "1-2"]


async def test_a_stop_before_the_first_attempt_begins_ends_the_run(stage: Stage) -> None:
    stage.grant(units=UNITS)
    stage.perform(stage.start_of(units=UNITS), fx.StopAttempts(LeaseId(1)))
    await until_ended(stage)
    await stage.quiet()
    assert told(stage) == [(1, Failure.STOPPED)]
    assert not stage.ran()
    assert stage.of(ev.AttemptBroke)[0].energy_mwh == 0


async def test_a_stop_of_one_lease_lets_another_go_on(stage: Stage) -> None:
    await stage.started(lease=1, units=(1, 2))
    await stage.started(lease=2, units=(3, 4))
    stage.perform(fx.StopAttempts(LeaseId(1)))
    await until(lambda: len(stage.attempts) == 1)
    stage.runtime.answer("2-3")
    await stage.runs("2-4")
    stage.runtime.answer("2-4")
    await until_ended(stage)
    assert told(stage) == [(1, Failure.STOPPED), [3], [4]]


async def test_results_of_several_leases_are_never_in_one_parcel(stage: Stage) -> None:
    leases = {1: (1, 2), 2: (3, 4), 3: (5, 6)}
    for lease, units in leases.items():
        stage.grant(lease, units)
        for unit in units:
            stage.runtime.answer_at_once(f"{lease}-{unit}")
    stage.perform(*(stage.start_of(lease, units) for lease, units in leases.items()))
    await until_ended(stage)
    found = {event.lease_id: tuple(unpack(event.parcel)) for event in stage.of(ev.AttemptsFinished)}
    assert found == leases
    assert len(stage.events) == 3


async def test_a_unit_that_its_grant_did_not_bring_breaks_without_energy(stage: Stage) -> None:
    await stage.started(units=(1,))
    stage.perform(stage.start_of(lease=2, units=(9,)))
    assert (await stage.heard(ev.AttemptBroke)).failure is Failure.INPUT_UNAVAILABLE
    stage.grant(lease=3, units=(4,))
    stage.perform(stage.start_of(lease=3, units=(4, 9)))
    await stage.runs("3-4")
    stage.runtime.used_ms = 80
    stage.runtime.answer("3-4")
    event = await stage.heard(ev.AttemptBroke, 2)
    assert (event.lease_id, event.unit_id, event.energy_mwh) == (3, 9, 0)
    assert told(stage)[1:] == [[4], (9, Failure.INPUT_UNAVAILABLE)]


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("not_found", Failure.INPUT_UNAVAILABLE),
        ("damaged", Failure.INPUT_DAMAGED),
        ("stopped", Failure.STOPPED),
    ],
)
async def test_an_attempt_that_never_ran_takes_no_energy_of_the_one_before(
    stage: Stage, fault: str, failure: Failure
) -> None:
    stage.gateway.objects["/in/1"] = INPUT
    await stage.started(units=(1, 2), payload=b"", input_address="/in/1")
    stage.gateway.gate.clear()
    stage.runtime.used_ms = 70
    stage.runtime.answer("1-1", cpu_ms=70)
    asked = len(stage.gateway.paths())
    await until(lambda: len(stage.gateway.paths()) > asked)
    if fault == "not_found":
        del stage.gateway.objects["/in/1"]
    elif fault == "damaged":
        stage.gateway.objects["/in/1"] = b"{}\n"
    else:
        stage.perform(fx.StopAttempts(LeaseId(1)))
    stage.gateway.gate.set()
    await until_ended(stage)
    assert told(stage) == [[1], (2, failure)]
    assert stage.of(ev.AttemptBroke)[0].energy_mwh == 0
    assert stage.attempts.figures.energy_mwh == 70
    assert stage.ran() == ["1-1"]
