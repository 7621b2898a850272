"""Live sessions in the car: a request from a gateway, pieces straight back, and how each ends."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from terafleet.agent.ports import RuntimeFailure, SessionEnd, SessionPiece, SessionRefused
from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.ids import SESSION_UNIT, Epoch, GatewayId, LeaseId, SessionId
from terafleet.core.reasons import Failure
from terafleet.core.session_events import Piece
from terafleet.protocol.agent import Grant, OfferedUnit, StartSession
from terafleet.protocol.sessions import (
    BEAT_MS,
    FROM_CAR_DECODER,
    START_WAIT_MS,
    AnswerEnded,
    AnyFromCar,
    AtWork,
    CarLeft,
    ModelRefused,
    PiecesSent,
)
from tests.contract.agent_stage import FakeGateway, until
from tests.contract.performer_stage import Stage

LEASE, SESSION = LeaseId(7), SessionId("ses_1")
NAME = "ses_1-7"
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with FakeGateway().open() as gateway, Stage(tmp_path, gateway).open() as opened:
        await opened.loaded()
        opened.events.clear()
        yield opened


def grant(stage: Stage, endpoint: str = CHAT) -> None:
    """The control plane gives the session its lease, and the guard wants it to begin."""
    unit = OfferedUnit(SESSION_UNIT, 1, b"", b"", "")
    model_id = stage.model.model_id
    stage.inputs.keep(Grant(LEASE, model_id, stage.model.address, "", endpoint, (unit,), SESSION))
    stage.perform(fx.StartAttempts(LEASE, (SESSION_UNIT,), model_id, endpoint))


def request(stage: Stage, delivered: tuple[int, ...] = ()) -> None:
    """The gateway sends the request."""
    wanted = StartSession(Epoch(1), LEASE, SESSION, GatewayId("gw"), b'{"n":1}', delivered)
    stage.live.take_request(wanted)


async def begun(stage: Stage, delivered: tuple[int, ...] = ()) -> None:
    """The runtime has the session."""
    grant(stage)
    request(stage, delivered)
    await until(lambda: NAME in stage.runtime.sessions)


def said(stage: Stage) -> list[AnyFromCar]:
    """What the gateway heard."""
    assert {subject for subject, _ in stage.said} <= {"v.veh-a.live.gw"}
    return [FROM_CAR_DECODER.decode(body) for _, body in stage.said]


def give(stage: Stage, *texts: str) -> None:
    """The runtime has pieces."""
    _, take = stage.runtime.opened[NAME]
    for number, text in enumerate(texts):
        take(SessionPiece(0, (number,), text))


async def until_over(stage: Stage) -> None:
    """Wait until the session is over in the car."""
    await until(lambda: len(stage.live) == 0)


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_request_may_come_before_or_behind_its_lease(stage: Stage, is_early: bool) -> None:
    if is_early:
        request(stage, (4, 5))
        grant(stage)
    else:
        grant(stage)
        await stage.quiet()
        request(stage, (4, 5))
    await until(lambda: NAME in stage.runtime.sessions)
    work, _ = stage.runtime.opened[NAME]
    assert (work.endpoint, work.body, work.delivered) == (CHAT, b'{"n":1}', (4, 5))


async def test_pieces_are_numbered_and_the_end_says_how_many_there_were(stage: Stage) -> None:
    await begun(stage)
    stage.runtime.used_ms += 30
    give(stage, "Once ", "upon ")
    stage.runtime.end_session(NAME, SessionEnd(NAME, 11, 2, 0))
    await until_over(stage)
    assert said(stage) == [
        PiecesSent(SESSION, LEASE, 0, (Piece(0, (0,), "Once "),)),
        PiecesSent(SESSION, LEASE, 1, (Piece(0, (1,), "upon "),)),
        AnswerEnded(SESSION, LEASE, 2, 11, 2),
    ]
    (event,) = stage.of(ev.AttemptsFinished)
    (result,) = event.results
    assert (result.unit_id, result.answers, result.answers_failed) == (SESSION_UNIT, 1, 0)
    assert (result.prompt_tokens, result.completion_tokens, result.energy_mwh) == (11, 2, 30)


async def test_a_car_at_work_says_so_while_it_has_nothing_to_say(stage: Stage) -> None:
    await begun(stage)
    await stage.time.pass_ms(BEAT_MS)
    await stage.time.pass_ms(BEAT_MS)
    assert said(stage) == [AtWork(SESSION, LEASE, 0)] * 2
    give(stage, "Once ")
    await stage.time.pass_ms(BEAT_MS - 1)
    assert isinstance(said(stage)[-1], PiecesSent)
    await stage.time.pass_ms(1)
    assert said(stage)[-1] == AtWork(SESSION, LEASE, 1)


async def test_the_owner_first_then_the_gateway_is_told_and_nothing_more_is_sent(
    stage: Stage,
) -> None:
    await begun(stage)
    give(stage, "Once ")
    _, take = stage.runtime.opened[NAME]
    stage.perform(fx.SuspendRuntime(), fx.StopAttempts(LEASE), fx.ForgetLease(LEASE))
    assert stage.runtime.is_suspended
    assert isinstance(said(stage)[-1], CarLeft), "told at once, before the runtime has ended"
    take(SessionPiece(0, (1,), "upon "))
    await until_over(stage)
    assert [type(one) for one in said(stage)] == [PiecesSent, CarLeft]
    assert stage.of(ev.AttemptBroke)[-1].failure is Failure.STOPPED


async def test_what_nobody_reads_any_more_ends_and_counts(stage: Stage) -> None:
    await begun(stage)
    give(stage, "Once ", "upon ", "a ")
    stage.live.unwanted(LEASE)
    await until_over(stage)
    assert f"stop {NAME}" in stage.runtime.asked
    (event,) = stage.of(ev.AttemptsFinished)
    assert event.results[0].completion_tokens == 3
    assert not any(isinstance(one, CarLeft | AnswerEnded) for one in said(stage))


async def test_a_lease_whose_request_never_comes_is_given_back(stage: Stage) -> None:
    grant(stage)
    await stage.time.pass_ms(START_WAIT_MS + BEAT_MS)
    await until_over(stage)
    broke = stage.of(ev.AttemptBroke)[-1]
    assert (broke.unit_id, broke.failure) == (SESSION_UNIT, Failure.INPUT_UNAVAILABLE)
    assert stage.said == [], "there is nobody to tell"


async def test_a_request_of_another_session_is_not_taken(stage: Stage) -> None:
    grant(stage)
    request_of_another = StartSession(
        Epoch(1), LEASE, SessionId("ses_2"), GatewayId("gw"), b"{}", ()
    )
    stage.live.take_request(request_of_another)
    await stage.quiet()
    assert stage.runtime.opened == {}


async def test_what_the_model_refuses_is_for_the_customer_and_no_fault_of_the_car(
    stage: Stage,
) -> None:
    await begun(stage)
    refused = SessionRefused(NAME, "context_length_exceeded", "700 of 512", "messages")
    stage.runtime.end_session(NAME, refused)
    await until_over(stage)
    assert said(stage) == [
        ModelRefused(SESSION, LEASE, 0, "context_length_exceeded", "700 of 512", "messages")
    ]
    assert len(stage.of(ev.AttemptsFinished)) == 1
    assert stage.of(ev.AttemptBroke) == []


async def test_a_crash_is_told_to_gateway_and_guard(stage: Stage) -> None:
    await begun(stage)
    give(stage, "Once ")
    stage.runtime.crash()
    await until_over(stage)
    assert isinstance(said(stage)[-1], CarLeft)
    assert stage.of(ev.AttemptBroke)[-1].failure is Failure.RUNTIME_CRASHED


async def test_embeddings_come_as_a_whole(stage: Stage) -> None:
    grant(stage, EMBEDDINGS)
    request(stage)
    await stage.runs(NAME)
    stage.runtime.answer(NAME, b'{"status_code":200,"body":{}}\n')
    await until_over(stage)
    piece, end = said(stage)
    assert isinstance(piece, PiecesSent)
    assert msgspec.json.decode(piece.pieces[0].text) == {"status_code": 200, "body": {}}
    assert end == AnswerEnded(SESSION, LEASE, 1, 30, 0)


async def test_a_runtime_that_fails_an_embedding_breaks_the_attempt(stage: Stage) -> None:
    grant(stage, EMBEDDINGS)
    request(stage)
    await stage.runs(NAME)
    stage.runtime.end(NAME, RuntimeFailure(NAME, Failure.OUT_OF_MEMORY))
    await until_over(stage)
    assert stage.of(ev.AttemptBroke)[-1].failure is Failure.OUT_OF_MEMORY
    assert isinstance(said(stage)[-1], CarLeft)


async def test_a_car_that_paces_its_sessions_tells_all_of_them_before_the_end(
    stage: Stage,
) -> None:
    stage.pace_sessions(40)
    await stage.loaded()
    await begun(stage)
    give(stage, "Once ", "upon ", "a ")
    stage.runtime.end_session(NAME, SessionEnd(NAME, 1, 3, 0))
    await stage.quiet()
    counts = []
    for _ in range(3):
        await stage.time.pass_ms(40)
        counts.append(len(said(stage)))
    assert counts[0] < counts[1] < counts[2]
    await stage.time.pass_ms(200)
    await until_over(stage)
    kinds = [type(one) for one in said(stage)]
    assert kinds == [PiecesSent, PiecesSent, PiecesSent, AnswerEnded]


async def test_a_car_that_loads_the_model_first_says_that_it_is_at_it(stage: Stage) -> None:
    unit = OfferedUnit(SESSION_UNIT, 1, b"", b"", "")
    model_id = stage.model.model_id
    request(stage)
    await stage.time.pass_ms(BEAT_MS)
    assert stage.said == [], "it does not hold the lease yet"
    stage.inputs.keep(Grant(LEASE, model_id, stage.model.address, "", CHAT, (unit,), SESSION))
    await stage.time.pass_ms(3 * BEAT_MS)
    assert said(stage) == [AtWork(SESSION, LEASE, 0)] * 3
    stage.inputs.forget(LEASE)
    await stage.time.pass_ms(3 * BEAT_MS)
    assert len(stage.said) == 3, "the model could not be loaded, and the lease is gone"


async def test_a_car_is_paid_for_what_it_told_itself(stage: Stage) -> None:
    await begun(stage, delivered=(1, 2, 3))
    give(stage, "upon ")
    stage.runtime.end_session(NAME, SessionEnd(NAME, 11, 4, 0))
    await until_over(stage)
    assert said(stage)[-1] == AnswerEnded(SESSION, LEASE, 1, 11, 4)
    assert stage.of(ev.AttemptsFinished)[-1].results[0].completion_tokens == 1
