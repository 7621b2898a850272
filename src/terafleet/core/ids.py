"""One type for each thing that has an identity.

Numbers are counted by the fleet's machine itself, so that a replay counts them again; texts come
in from outside with the event that brings the thing.
"""

from typing import NewType

VehicleId = NewType("VehicleId", str)
"""`veh-` and ten letters; given at enrolment."""
CustomerId = NewType("CustomerId", str)
BatchId = NewType("BatchId", str)
"""`batch_` and hex, the API's own form; made by the gateway."""
ModelId = NewType("ModelId", str)
"""SHA-256 of the manifest, in hex: a changed file is another model."""
RequestId = NewType("RequestId", str)
"""Names the question that an effect answers."""
WorkUnitId = NewType("WorkUnitId", int)
LeaseId = NewType("LeaseId", int)
"""Also the fencing number: later leases have greater ones."""
Epoch = NewType("Epoch", int)
"""One connection of one vehicle; greater is newer, over the whole fleet."""
ReceiptId = NewType("ReceiptId", int)
"""Names a receipt within its lease: the number of the first unit that it is about."""
SessionId = NewType("SessionId", str)
"""`ses_` and hex; made by the gateway."""
GatewayId = NewType("GatewayId", str)
"""A word of the bus; new for each process."""
SESSION_UNIT = WorkUnitId(0)
"""Stands for the session in a session's lease, which has no work units; units count from 1."""
WHOLE_LEASE = ReceiptId(-1)
"""The receipt that is about the lease itself."""


def attempt_name(lease_id: LeaseId, unit_id: WorkUnitId) -> str:
    """The one name of the attempt of a unit under a lease."""
    return f"{lease_id}-{unit_id}"


OUTPUTS = "out/"
"""How the names of all outputs begin."""


def output_name(lease_id: LeaseId, receipt_id: ReceiptId) -> str:
    """The name of the blob that holds the outputs that a receipt brought."""
    return f"{OUTPUTS}{lease_id}/{receipt_id}"


def receipt_of(name: str) -> tuple[LeaseId, ReceiptId]:
    """The receipt whose outputs have this name."""
    lease_id, _, receipt_id = name.removeprefix(OUTPUTS).partition("/")
    return LeaseId(int(lease_id)), ReceiptId(int(receipt_id))


def batch_outputs_folder(batch_id: BatchId) -> str:
    """How the names of all large outputs of a batch begin."""
    return f"{OUTPUTS}{batch_id}/"


def vehicle_outputs_folder(batch_id: BatchId, vehicle_id: VehicleId) -> str:
    """How the names of a car's large outputs of a batch begin."""
    return f"{OUTPUTS}{batch_id}/{vehicle_id}/"


def large_output_name(lease_id: LeaseId, unit_id: WorkUnitId) -> str:
    """The name of an output that is too large for a receipt, in its car's folder."""
    return f"{lease_id}-{unit_id}"


def input_name(batch_id: BatchId) -> str:
    """The name of the object that holds the inputs of a batch's units, one behind the other."""
    return f"in/{batch_id}"
