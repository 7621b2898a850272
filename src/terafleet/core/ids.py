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


def attempt_name(lease_id: LeaseId, unit_id: WorkUnitId) -> str:
    """The one name of the attempt of a unit under a lease."""
    return f"{lease_id}-{unit_id}"


OUTPUTS = "out/"
"""How the names of all outputs begin."""


def output_name(lease_id: LeaseId, unit_id: WorkUnitId) -> str:
    """The name of the blob that holds an attempt's output."""
    return f"{OUTPUTS}{unit_id}/{lease_id}"


def attempt_of(name: str) -> tuple[LeaseId, WorkUnitId]:
    """The attempt whose output has this name."""
    unit_id, _, lease_id = name.removeprefix(OUTPUTS).partition("/")
    return LeaseId(int(lease_id)), WorkUnitId(int(unit_id))


def input_name(batch_id: BatchId) -> str:
    """The name of the object that holds the inputs of a batch's units, one behind the other."""
    return f"in/{batch_id}"
