"""What the headers of an error tell clients, and what the official client makes of them."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from terafleet.control.gateway.errors import ApiError, error_response
from terafleet.core.reasons import Refused
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.openai import EMBEDDINGS
from terafleet.protocol.shard import Answered, CancelBatch, CreateBatch
from tests.contract.customer_stage import ALICE, WAIT_S, Server, Service, lines, server

pytestmark = pytest.mark.asyncio(loop_scope="module")

FULL = Answered(Refused.STORAGE_FULL, "the control plane's disk is full")
ENDED = Answered(Refused.BATCH_ENDED, "the batch has ended")


class Patient:
    """The official client as it comes, which asks again by itself; it counts what it asks."""

    def __init__(self, url: str) -> None:
        self.asked: list[str] = []
        transport = DefaultAsyncHttpxClient(verify=False, event_hooks={"request": [self._count]})
        self.client = AsyncOpenAI(
            base_url=f"{url}/v1", api_key=ALICE, timeout=WAIT_S, http_client=transport
        )
        assert self.client.max_retries > 0

    async def _count(self, request: Any) -> None:
        self.asked.append(str(request.url))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_server() -> AsyncIterator[Server]:
    async with server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(open_server: Server) -> AsyncIterator[Service]:
    async with open_server.open() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def patient(gateway: Service) -> AsyncIterator[Patient]:
    made = Patient(gateway.url)
    yield made
    await made.client.close()


def check_told_at_once(patient: Patient, error: openai.APIStatusError, code: str) -> None:
    assert (error.status_code, error.code) == (ERRORS[code].status, code)
    assert len(patient.asked) == 1, "the client asked again before it told its caller"


async def test_a_full_disk_is_told_at_once_to_who_sends_a_file(
    gateway: Service, patient: Patient
) -> None:
    gateway.stage.is_full = True
    with pytest.raises(openai.APIStatusError) as refused:
        await patient.client.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    check_told_at_once(patient, refused.value, "storage_full")
    assert refused.value.response.headers["retry-after"] == "60"


@pytest.mark.parametrize("who", ["gateway", "shard"])
async def test_a_full_disk_is_told_at_once_to_who_makes_a_batch(
    gateway: Service, patient: Patient, who: str
) -> None:
    file_id = await gateway.upload(lines(1))
    if who == "gateway":
        gateway.stage.is_full = True
    else:
        gateway.shard.refuse[CreateBatch] = FULL
    with pytest.raises(openai.APIStatusError) as refused:
        await patient.client.batches.create(
            input_file_id=file_id, endpoint=EMBEDDINGS, completion_window="24h"
        )
    check_told_at_once(patient, refused.value, "storage_full")


@pytest.mark.parametrize(("answer", "code"), [(FULL, "storage_full"), (ENDED, "batch_ended")])
async def test_what_keeps_a_batch_from_being_cancelled_is_told_at_once(
    gateway: Service, patient: Patient, answer: Answered, code: str
) -> None:
    made = await gateway.batch(await gateway.upload(lines(1)))
    gateway.shard.refuse[CancelBatch] = answer
    with pytest.raises(openai.APIStatusError) as refused:
        await patient.client.batches.cancel(made.id)
    check_told_at_once(patient, refused.value, code)


@pytest.mark.parametrize("code", ERRORS)
async def test_clients_are_kept_from_asking_again_where_it_is_of_no_use(code: str) -> None:
    headers = error_response(ApiError(code, "words")).headers
    is_final = code == "storage_full" or ERRORS[code].status == 409
    assert headers.get("x-should-retry") == ("false" if is_final else None)
    waits = {"storage_full": "60", "overloaded": "2", "shard_unavailable": "2"}
    assert headers.get("retry-after") == waits.get(code)


async def test_an_error_says_itself_how_long_to_wait_if_it_knows() -> None:
    error = ApiError("overloaded", "words", headers={"retry-after": "7"})
    assert error_response(error).headers["retry-after"] == "7"
