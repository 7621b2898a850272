"""The performer: each effect of the guard becomes its deed, and the deed's end an event."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terafleet.agent.answers import AnswerCount, count_answers
from terafleet.agent.deeds import Deeds
from terafleet.agent.energy import CpuShares
from terafleet.agent.inputs import LEASES_MAX, LeasedInputs
from terafleet.agent.ports import RuntimeFailure, RuntimeUnavailable
from terafleet.agent.runtime_keeper import RuntimeKeeper
from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.ids import LeaseId, ModelId, WorkUnitId
from terafleet.core.reasons import Failure
from terafleet.core.work import AttemptResult
from terafleet.protocol.agent import Grant, OfferedUnit
from terafleet.protocol.parcel import unpack
from tests.contract.agent_stage import FakeGateway, until
from tests.contract.performer_stage import LINE, NO_MODEL, FakeRuntime, Stage

ONE = LeaseId(1)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with FakeGateway().open() as gateway, Stage(tmp_path, gateway).open() as opened:
        yield opened


async def test_a_model_is_fetched_its_runtime_started_and_the_model_loaded(stage: Stage) -> None:
    stage.perform(fx.PrepareModel(stage.model.model_id))
    assert (await stage.heard(ev.ModelReady)).model_id == stage.model.model_id
    assert stage.runtime.asked == ["start", f"load {stage.model.model_id[:8]}"]
    assert stage.performer.loaded == (stage.model.model_id,)


async def test_one_start_serves_all_models(stage: Stage) -> None:
    stage.perform(fx.PrepareModel(stage.model.model_id))
    stage.perform(fx.PrepareModel(stage.model.model_id))
    await stage.heard(ev.ModelReady, 2)
    assert stage.runtime.asked.count("start") == 1


async def test_a_model_that_can_not_be_had_is_unavailable(stage: Stage) -> None:
    stage.perform(fx.PrepareModel(NO_MODEL))
    event = await stage.heard(ev.ModelUnavailable)
    assert (event.model_id, event.failure) == (NO_MODEL, Failure.MODEL_UNAVAILABLE)
    assert event.detail.startswith("address_missing")
    assert not stage.runtime.asked


async def test_a_runtime_that_does_not_start_makes_the_model_unavailable(stage: Stage) -> None:
    stage.runtime.unavailable = RuntimeUnavailable(Failure.SANDBOX_UNAVAILABLE, "no walls")
    stage.perform(fx.PrepareModel(stage.model.model_id))
    event = await stage.heard(ev.ModelUnavailable)
    assert (event.failure, event.detail) == (Failure.SANDBOX_UNAVAILABLE, "no walls")
    stage.runtime.unavailable = None
    await stage.loaded()


async def test_a_model_that_does_not_load_is_unavailable(stage: Stage) -> None:
    stage.runtime.load_failure = RuntimeFailure("", Failure.OUT_OF_MEMORY, "too large")
    stage.perform(fx.PrepareModel(stage.model.model_id))
    event = await stage.heard(ev.ModelUnavailable)
    assert (event.failure, event.detail) == (Failure.OUT_OF_MEMORY, "too large")


async def test_a_failed_load_is_told_by_the_link(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(stage.link, "report_load_failure", lambda *one: said.append(one))
    stage.perform(fx.ReportLoadFailure(ModelId("m"), Failure.OUT_OF_MEMORY, "no room"))
    assert said == [("m", Failure.OUT_OF_MEMORY, "no room")]


async def test_an_attempt_finishes_with_its_output_in_a_parcel(stage: Stage) -> None:
    await stage.loaded()
    name = await stage.started()
    await stage.time.pass_ms(250)
    stage.runtime.answer(name, LINE * 2 + b'{"status_code":400,"body":{}}\n', cpu_ms=40)
    event = await stage.heard(ev.AttemptsFinished)
    output = LINE * 2 + b'{"status_code":400,"body":{}}\n'
    assert event.lease_id == ONE
    assert event.results == (AttemptResult(WorkUnitId(1), 3, 1, 30, 5, 40, 250),)
    assert unpack(event.parcel) == {1: output}
    assert event.digest == hashlib.sha256(event.parcel).digest()
    assert not list(stage.store.blob_names(""))
    assert len(stage.attempts) == 0
    figures = stage.attempts.figures
    assert (figures.finished, figures.answers, figures.answers_failed) == (1, 3, 1)


async def test_a_large_input_is_fetched_from_its_address(stage: Stage) -> None:
    body = b"{}\n" * 30_000
    stage.gateway.objects["/in/1"] = body
    digest = hashlib.sha256(body).digest()
    await stage.loaded()
    name = await stage.started(digest=digest, payload=b"", input_address="/in/1")
    stage.runtime.answer(name)
    await stage.heard(ev.AttemptsFinished)


@pytest.mark.parametrize(
    ("changes", "failure", "detail"),
    [
        ({"digest": b"0" * 32}, Failure.INPUT_DAMAGED, "digest"),
        ({"input_address": "/nowhere"}, Failure.INPUT_UNAVAILABLE, "not_found"),
        ({"input_address": "http://elsewhere/"}, Failure.INPUT_UNAVAILABLE, "address_foreign"),
    ],
)
async def test_an_input_that_can_not_be_had_breaks_the_attempt(
    stage: Stage, changes: dict[str, str | bytes | int], failure: Failure, detail: str
) -> None:
    await stage.loaded()
    stage.grant(**changes)  # type: ignore[arg-type]
    stage.perform(stage.start_of())
    event = await stage.heard(ev.AttemptBroke)
    assert (event.failure, event.energy_mwh) == (failure, 0)
    assert detail in event.detail
    assert not stage.runtime.running


async def test_an_attempt_without_input_breaks(stage: Stage) -> None:
    await stage.loaded()
    stage.grant()
    stage.perform(fx.ForgetLease(ONE), stage.start_of())
    assert (await stage.heard(ev.AttemptBroke)).failure is Failure.INPUT_UNAVAILABLE


async def test_an_attempt_without_runtime_breaks(stage: Stage) -> None:
    stage.grant()
    stage.perform(stage.start_of())
    assert (await stage.heard(ev.AttemptBroke)).failure is Failure.RUNTIME_CRASHED


@pytest.mark.parametrize(
    "output", [LINE * 2, LINE * 4, b"", LINE * 2 + b"no json\n", b'{"body":{}}\n' * 3]
)
async def test_an_output_that_is_not_whole_breaks_the_attempt(stage: Stage, output: bytes) -> None:
    await stage.loaded()
    name = await stage.started()
    stage.runtime.used_ms = 40
    stage.runtime.answer(name, output)
    event = await stage.heard(ev.AttemptBroke)
    assert (event.failure, event.energy_mwh) == (Failure.OUTPUT_INCOMPLETE, 40)
    assert not stage.of(ev.AttemptsFinished)


@pytest.mark.parametrize(
    ("reason", "failure"),
    [("out_of_memory", Failure.OUT_OF_MEMORY), ("gremlins", Failure.RUNTIME_CRASHED)],
)
async def test_a_runtimes_failure_breaks_the_attempt(
    stage: Stage, reason: str, failure: Failure
) -> None:
    await stage.loaded()
    name = await stage.started()
    stage.runtime.used_ms = 70
    stage.runtime.end(name, RuntimeFailure(name, reason, "d" * 10_000))
    event = await stage.heard(ev.AttemptBroke)
    assert (event.failure, event.energy_mwh, len(event.detail)) == (failure, 70, 500)


async def test_a_stopped_attempt_breaks_with_the_energy_that_it_took(stage: Stage) -> None:
    await stage.loaded()
    await stage.started()
    await stage.started(lease=2, units=(2,))
    stage.runtime.used_ms = 100
    stage.perform(fx.StopAttempts(ONE))
    event = await stage.heard(ev.AttemptBroke)
    assert (event.lease_id, event.failure, event.energy_mwh) == (1, Failure.STOPPED, 50)
    stage.runtime.used_ms = 160
    stage.perform(fx.StopAttempts(LeaseId(2)))
    assert (await stage.heard(ev.AttemptBroke, 2)).energy_mwh == 110


async def test_a_result_that_comes_after_the_stop_counts_as_stopped(stage: Stage) -> None:
    await stage.loaded()
    name = await stage.started()
    stage.runtime.answer(name)
    stage.perform(fx.StopAttempts(ONE))
    assert (await stage.heard(ev.AttemptBroke)).failure is Failure.STOPPED
    assert not stage.of(ev.AttemptsFinished)


async def test_an_attempt_stopped_while_its_input_comes_never_runs(stage: Stage) -> None:
    await stage.loaded()
    stage.gateway.objects["/in/1"] = b"{}"
    stage.grant(digest=hashlib.sha256(b"{}").digest(), input_address="/in/1")
    stage.gateway.gate.clear()
    stage.perform(stage.start_of())
    await until(lambda: "/in/1" in stage.gateway.paths())
    stage.perform(fx.StopAttempts(ONE))
    stage.gateway.gate.set()
    assert (await stage.heard(ev.AttemptBroke)).failure is Failure.STOPPED
    assert not stage.ran()


async def test_the_processor_is_given_back_before_anything_else(stage: Stage) -> None:
    await stage.loaded()
    await stage.started()
    stage.runtime.asked.clear()
    stage.perform(
        fx.StopAttempts(ONE),
        fx.ReportPermit(fx.GuardState.YIELDING, ()),
        fx.SuspendRuntime(),
        fx.KillRuntime(),
    )
    assert stage.runtime.asked == ["suspend"], "at once, without a turn of the loop"
    await stage.heard(ev.RuntimeExited)
    assert "kill" in stage.runtime.asked
    assert [event.failure for event in stage.of(ev.AttemptBroke)] == [Failure.STOPPED]


async def test_a_kill_ends_in_one_exit_however_often_it_is_asked(stage: Stage) -> None:
    await stage.loaded()
    stage.runtime.kill_gate.clear()
    stage.perform(fx.KillRuntime())
    await stage.quiet()
    stage.perform(fx.KillRuntime())
    await stage.quiet()
    assert stage.runtime.asked.count("kill") == 2
    assert not stage.of(ev.RuntimeExited)
    stage.runtime.kill_gate.set()
    await stage.heard(ev.RuntimeExited)
    await stage.quiet()
    assert len(stage.of(ev.RuntimeExited)) == 1
    assert stage.performer.loaded == ()


async def test_a_kill_of_a_runtime_that_is_not_up_ends_too(stage: Stage) -> None:
    stage.perform(fx.KillRuntime())
    assert len(stage.of(ev.RuntimeExited)) == 1


async def test_a_kill_ends_what_is_being_prepared(stage: Stage) -> None:
    stage.gateway.gate.clear()
    stage.perform(fx.PrepareModel(stage.model.model_id))
    await until(lambda: stage.gateway.heard)
    stage.perform(fx.KillRuntime())
    stage.gateway.gate.set()
    await stage.quiet()
    assert [type(event) for event in stage.events] == [ev.RuntimeExited]
    assert not stage.runtime.asked
    await stage.loaded()


async def test_a_runtime_can_be_started_again_after_a_kill(stage: Stage) -> None:
    await stage.loaded()
    stage.perform(fx.SuspendRuntime(), fx.KillRuntime())
    await stage.heard(ev.RuntimeExited)
    await stage.loaded()
    assert stage.runtime.asked.count("start") == 2
    assert not stage.runtime.is_suspended


async def test_a_crash_is_one_exit_and_breaks_what_ran(stage: Stage) -> None:
    await stage.loaded()
    await stage.started()
    stage.runtime.used_ms = 30
    stage.runtime.crash()
    assert (await stage.heard(ev.RuntimeExited)).detail == "signal 11"
    event = await stage.heard(ev.AttemptBroke)
    assert (event.failure, event.energy_mwh) == (Failure.RUNTIME_CRASHED, 30)
    await stage.quiet()
    assert len(stage.of(ev.RuntimeExited)) == 1
    await stage.loaded()


async def test_a_model_that_crashes_its_runtime_is_known_before_the_exit(stage: Stage) -> None:
    stage.runtime.load_gate.clear()
    stage.perform(fx.PrepareModel(stage.model.model_id))
    await until(lambda: len(stage.runtime.asked) == 2)
    stage.runtime.load_failure = RuntimeFailure("", Failure.RUNTIME_CRASHED, "signal 11")
    stage.runtime.load_gate.set()
    stage.runtime.crash()
    await stage.heard(ev.RuntimeExited)
    assert [type(event) for event in stage.events] == [ev.ModelUnavailable, ev.RuntimeExited]


async def test_several_kinds_of_runtime_are_one_to_the_guard() -> None:
    one, two, exits, deeds = FakeRuntime(), FakeRuntime(), list[str](), Deeds()
    keeper = RuntimeKeeper({"one": one, "two": two}, exits.append, deeds.spawn)
    assert await keeper.up("one") is one
    assert await keeper.up("two") is two
    assert isinstance(await keeper.up("three"), RuntimeFailure)
    one.used_ms, two.used_ms = 3, 4
    assert keeper.cpu_ms() == 7
    keeper.suspend()
    assert one.is_suspended
    assert two.is_suspended
    keeper.kill()
    await until(lambda: exits)
    assert (exits, one.is_up, two.is_up) == (["killed"], False, False)
    await keeper.up("two")
    two.crash()
    await until(lambda: len(exits) == 2)
    await deeds.stop()


async def test_a_bug_in_a_deed_is_not_lost() -> None:
    deeds = Deeds()

    async def deed() -> None:
        raise ZeroDivisionError

    deeds.spawn(deed())
    with pytest.raises(ZeroDivisionError):
        await deeds.watch()


@pytest.mark.parametrize(
    ("output", "count"),
    [
        (b"", AnswerCount(0, 0)),
        (LINE, AnswerCount(1, 0)),
        (LINE.rstrip(), AnswerCount(1, 0)),
        (LINE + b'{"body":[{"status_code":500}],"status_code":399}\n', AnswerCount(2, 0)),
        (b'{"status_code": 400, "body": {}}\n{"status_code":503}\n', AnswerCount(2, 2)),
        (b'{"status_code":"200"}\n', None),
        (b"[200]\n", None),
        (b'{"status_code":200', None),
        (b"\xff\n", None),
    ],
)
def test_answers_are_counted_by_their_status(output: bytes, count: AnswerCount | None) -> None:
    assert count_answers(output) == count


def test_processor_time_is_shared_by_who_ran_meanwhile() -> None:
    used = [0]
    shares: CpuShares[str] = CpuShares(lambda: used[0])
    shares.begin("a")
    used[0] = 100
    shares.begin("b")
    used[0] = 200
    assert shares.end("a") == 150
    used[0] = 20  # The program was started anew, and its time with it.
    assert shares.end("b") == 70
    assert shares.end("b") == 0


def test_the_inputs_that_are_kept_are_bounded() -> None:
    inputs = LeasedInputs()
    unit = OfferedUnit(WorkUnitId(1), 1, b"", b"", "")
    for lease in range(LEASES_MAX + 10):
        inputs.keep(Grant(LeaseId(lease), ModelId("m"), "", f"/out/{lease}/", "", (unit,)))
    assert len(inputs) == LEASES_MAX
    assert inputs.of(LeaseId(9)) is None
    kept = inputs.of(LeaseId(10))
    assert kept is not None
    assert (kept.units, kept.outputs_address) == ({1: unit}, "/out/10/")
    inputs.forget(LeaseId(10))
    assert inputs.of(LeaseId(10)) is None
