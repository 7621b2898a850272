"""Messages between gateways and a shard: questions with one answer each, over the bus."""

import msgspec

from terafleet.core.capability import ModelNeeds
from terafleet.core.events import UnitSpec
from terafleet.core.ids import (
    BatchId,
    CustomerId,
    LeaseId,
    ModelId,
    ReceiptId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Refused, Waiting
from terafleet.core.work import BatchState

SHARD_SUBJECT = "shard.0"
"""Where a shard listens for questions; one shard in this version."""

SESSIONS_SUBJECT = "shard.0.sessions"
"""Where a shard hears what gateways want for live sessions."""

GATEWAY_WORK_SUBJECT = "gateway.work"
"""Where gateways, as one group, take the work that a shard gives them."""

GATEWAY_GROUP = "gateways"


class Question(msgspec.Struct, frozen=True, tag=True):
    """What a gateway asks a shard."""


class CreateBatch(Question, frozen=True):
    """Admit a batch. Answer: `Answered`."""

    batch_id: BatchId
    customer_id: CustomerId
    endpoint: str
    model_ids: tuple[ModelId, ...]
    requests: int
    window_ms: int
    input_file_id: str
    metadata: bytes


class SubmitUnits(Question, frozen=True):
    """The units of an admitted batch, cut and stored. Answer: `Answered`."""

    batch_id: BatchId
    units: tuple[UnitSpec, ...]
    requests_failed: int


class RejectBatch(Question, frozen=True):
    """An admitted batch can't be cut. Answer: `Answered`."""

    batch_id: BatchId
    errors: bytes


class CancelBatch(Question, frozen=True):
    """A customer wants no more of a batch. Answer: `Answered`."""

    batch_id: BatchId
    customer_id: CustomerId


class BatchFilesWritten(Question, frozen=True):
    """A batch's files are written; an empty id is no file. Answer: `Answered`."""

    batch_id: BatchId
    output_file_id: str
    error_file_id: str


class GetBatch(Question, frozen=True):
    """Answer: `BatchView`, or `Answered` with a refusal."""

    batch_id: BatchId
    customer_id: CustomerId


class ListBatches(Question, frozen=True):
    """Newest first, after the batch `after` ("" from the newest). Answer: `BatchList`."""

    customer_id: CustomerId
    after: str
    limit: int


class GetOutputs(Question, frozen=True):
    """Outputs by the receipt that brought them. Answer: `Outputs`, as many as fit, in order."""

    outputs: tuple[tuple[LeaseId, ReceiptId, WorkUnitId], ...]


class EnrolVehicle(Question, frozen=True):
    """A car has joined. Answer: `Answered`."""

    vehicle_id: VehicleId
    name: str


class RemoveVehicle(Question, frozen=True):
    """A car is out for good. Answer: `Answered`."""

    vehicle_id: VehicleId


class DrainVehicle(Question, frozen=True):
    """Grant a car nothing new, or again. Answer: `Answered`."""

    vehicle_id: VehicleId
    is_draining: bool


class SetVehiclePolicy(Question, frozen=True):
    """Set the owner policy of a car, as JSON; empty takes it back. Answer: `Answered`."""

    vehicle_id: VehicleId
    policy: bytes


class GetVehiclePolicy(Question, frozen=True):
    """Answer: `VehiclePolicy`."""

    vehicle_id: VehicleId


class ListVehicles(Question, frozen=True):
    """Answer: `VehicleList`."""


class AddModel(Question, frozen=True):
    """The catalogue has a model. Answer: `Answered`."""

    needs: ModelNeeds


class RemoveModel(Question, frozen=True):
    """The catalogue has a model no longer. Answer: `Answered`."""

    model_id: ModelId


class WarmModel(Question, frozen=True):
    """Keep a model in memory in so many slots; 0 ends that. Answer: `Answered`."""

    model_id: ModelId
    slots: int


class GetStatus(Question, frozen=True):
    """Answer: `ShardStatus`."""


class GetStory(Question, frozen=True):
    """The history of one thing from the journal, newest `limit` lines. Answer: `Story`."""

    about: str
    limit: int


AnyQuestion = (
    CreateBatch
    | SubmitUnits
    | RejectBatch
    | CancelBatch
    | BatchFilesWritten
    | GetBatch
    | ListBatches
    | GetOutputs
    | EnrolVehicle
    | RemoveVehicle
    | DrainVehicle
    | SetVehiclePolicy
    | GetVehiclePolicy
    | ListVehicles
    | AddModel
    | RemoveModel
    | WarmModel
    | GetStatus
    | GetStory
)


class Reply(msgspec.Struct, frozen=True, tag=True):
    """What a shard answers."""


class Answered(Reply, frozen=True):
    """Done and kept, or refused with a reason and words to it."""

    refused: Refused | None = None
    detail: str = ""


class BatchView(Reply, frozen=True):
    """What a customer reads about a batch; times in ms since 1970, 0 is not yet."""

    batch_id: BatchId
    customer_id: CustomerId
    endpoint: str
    input_file_id: str
    state: BatchState
    created_ms: int
    in_progress_ms: int
    finalizing_ms: int
    ended_ms: int
    cancelling_ms: int
    expires_ms: int
    requests: int
    requests_completed: int
    requests_failed: int
    units: int
    units_ended: int
    waiting: Waiting | None
    output_file_id: str
    error_file_id: str
    errors: bytes
    metadata: bytes
    prompt_tokens: int
    completion_tokens: int


class BatchList(Reply, frozen=True):
    """Batches, newest first; whether there are more behind them."""

    batches: tuple[BatchView, ...]
    has_more: bool


class Outputs(Reply, frozen=True):
    """Bytes for the first outputs of the question; None is not in the record (it is an object)."""

    bodies: tuple[bytes | None, ...]


class VehiclePolicy(Reply, frozen=True):
    """The owner policy that was set for a car, as JSON; empty where none is."""

    policy: bytes


class VehicleView(msgspec.Struct, frozen=True):
    """What an operator reads about a car; canaries are paid as work, and counted apart from it.

    `loaded` names the models in its memory, by their ids where the catalogue has them no more.
    """

    vehicle_id: VehicleId
    name: str
    state: str
    refusals: tuple[str, ...]
    epoch: int
    device: str
    slots: int
    leases: int
    units_succeeded: int
    attempts_lost: dict[str, int]
    energy_mwh: int
    energy_lost_mwh: int
    runtime_ms: int
    lost_ms: int
    reward_micro: int
    quarantined_until_ms: int
    heard_ms: int
    canaries_answered: int = 0
    loaded: tuple[str, ...] = ()


class VehicleList(Reply, frozen=True):
    """All cars of the shard."""

    vehicles: tuple[VehicleView, ...]


class WarmView(msgspec.Struct, frozen=True):
    """A model that shall stay in memory in `slots` slots, and how far that is.

    `slots_chosen` are those of the cars that were asked, `slots_loaded` of those that have it.
    """

    model_id: ModelId
    name: str
    slots: int
    slots_chosen: int
    slots_loaded: int


class TimesTaken(msgspec.Struct, frozen=True):
    """How long something took each time.

    `counts[i]` times it took up to `bounds_ms[i]` and longer than the bound before; the last count
    is of what took longer than all bounds.
    """

    bounds_ms: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total_ms: float = 0.0


class ShardStatus(Reply, frozen=True):
    """How the shard is; `warm` are the models that the operator wants in memory.

    `sessions_queued` counts live sessions that wait, by the names of their models.
    """

    version: str
    at_ms: int
    started_ms: int
    is_storage_full: bool
    bytes_free: int | None
    vehicles: dict[str, int]
    units_waiting: int
    units_running: int
    batches_open: int
    journal_sequence: int
    figures: dict[str, float]
    warm: tuple[WarmView, ...] = ()
    sessions_queued: dict[str, int] = {}
    commit_times: TimesTaken = TimesTaken()


class StoryLine(msgspec.Struct, frozen=True):
    """One thing that happened, in words."""

    at_ms: int
    sequence: int
    text: str


class Story(Reply, frozen=True):
    """What the journal tells about one thing; empty when it knows nothing of it."""

    lines: tuple[StoryLine, ...]
    is_complete: bool


AnyReply = (
    Answered | BatchView | BatchList | Outputs | VehicleList | VehiclePolicy | ShardStatus | Story
)


class GatewayWork(msgspec.Struct, frozen=True, tag=True):
    """What a shard asks of any one gateway; each may come twice and must be safe to do twice."""


class Cut(GatewayWork, frozen=True):
    """Cut a batch, store its inputs as one object, answer with `SubmitUnits` or `RejectBatch`.

    `core.work.unit_cost` makes the units' size of the batch's whole cost, what a typical slot of
    the fleet does (`tokens_per_s`) and how many slots could run it.
    """

    batch_id: BatchId
    input_file_id: str
    endpoint: str
    tokens_per_s: int
    slots: int


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """How a unit ended: the receipt that brought its output, or why there is none."""

    unit_id: WorkUnitId
    requests: int
    lease_id: LeaseId
    receipt_id: ReceiptId
    vehicle_id: VehicleId
    ending: str | None
    detail: str


class Assemble(GatewayWork, frozen=True):
    """Write a batch's files and answer with `BatchFilesWritten`.

    Outcomes are in the order of the cut.
    """

    batch_id: BatchId
    customer_id: CustomerId
    input_file_id: str
    outcomes: tuple[Outcome, ...]


class Forget(GatewayWork, frozen=True):
    """Remove the objects of a batch's units: inputs, plan, and outputs that were put as objects."""

    batch_id: BatchId
    input_file_id: str


AnyGatewayWork = Cut | Assemble | Forget


QUESTION_DECODER = msgspec.msgpack.Decoder(AnyQuestion)
REPLY_DECODER = msgspec.msgpack.Decoder(AnyReply)
WORK_DECODER = msgspec.msgpack.Decoder(AnyGatewayWork)
ENCODER = msgspec.msgpack.Encoder()
