"""Says in a person's words what the product says by name: refusals, reasons to wait, errors."""

from terafleet.agent.standing_words import REFUSALS
from terafleet.core.reasons import Refusal, Waiting

WAITING = {
    Waiting.NO_VEHICLE_ONLINE: "no car is online",
    Waiting.ALL_VEHICLES_REFUSE: "all cars refuse at present (terafleet vehicle list says why)",
    Waiting.ALL_SLOTS_TAKEN: "all cars are busy",
    Waiting.VEHICLES_QUARANTINED: "the cars that could do it failed lately and rest for a while",
}

_OPERATOR = "Use an operator's API key: terafleet key create NAME --operator"
_DAMAGED = "The file is damaged or made to deceive; get it again from a source that you trust."
_AGAIN = "Try again in a moment; terafleet status says how the control plane is."

ADVICE = {
    "url_missing": "Start one with: terafleet up, or say where it is in TERAFLEET_URL.",
    "api_key_missing": "Set TERAFLEET_API_KEY; operators make keys with: terafleet key create NAME",
    "invalid_url": "Write it as http://host:port, in TERAFLEET_URL or --url.",
    "gateway_odd": "Look whether TERAFLEET_URL or --url is the address of a control plane.",
    "invalid_api_key": "Look at TERAFLEET_API_KEY; it must be a key of this control plane.",
    "revoked_api_key": "Ask the operator for another key.",
    "operator_only": _OPERATOR,
    "model_not_found": "See which models there are: terafleet model list",
    "model_name_taken": "Take another name, or remove that model: terafleet model remove NAME",
    "vehicle_not_found": "See which cars there are: terafleet vehicle list",
    "key_not_found": "See which keys there are: terafleet key list",
    "batch_not_found": "See your batches: terafleet batch list",
    "fleet_empty": "Enrol a car first: terafleet vehicle code",
    "no_feasible_vehicle": "See what the cars lend: terafleet vehicle list",
    "overloaded": _AGAIN,
    "shard_unavailable": _AGAIN,
    "storage_full": "Make room on the disk of the control plane's data folder.",
    "internal_error": "The log of the control plane says more.",
    "batch_not_ended": "Wait for it: terafleet batch status ID --watch",
}
"""What a person can do, by an error's code."""

_ASK_AGAIN = "Ask again; the fleet then takes another car where it can."

CHAT_ADVICE = {
    "session_failed": _ASK_AGAIN,
    "deadline_exceeded": _ASK_AGAIN,
    "gateway_unreachable": "Ask again once the control plane can be reached.",
    "no_vehicle_permits": "See why the cars refuse: terafleet vehicle list",
    "context_length_exceeded": "Say less; in a conversation /reset forgets what was said.",
}
"""The same, where a person talks with a model: these come before the others."""

MODEL_FILE_ADVICE = {
    "truncated": "The download broke off; fetch the file again.",
    "size_mismatch": _DAMAGED,
    "trailing_data": _DAMAGED,
    "malformed": _DAMAGED,
    "absurd_header": _DAMAGED,
    "out_of_bounds": _DAMAGED,
    "overlapping_tensors": _DAMAGED,
    "hole_between_tensors": _DAMAGED,
    "misaligned_tensor": _DAMAGED,
    "duplicate_name": _DAMAGED,
    "unsafe_name": _DAMAGED,
    "wrong_type": _DAMAGED,
    "too_deep": _DAMAGED,
    "bad_text": _DAMAGED,
    "pickle": "Nothing of it was loaded or sent.",
    "external_data": "Save the model as one file that holds its weights, and add that.",
    "custom_operator": "Export the model again with standard operators only.",
    "tensor_unknown": "Only plain BERT encoders are converted; others need an ONNX export.",
    "tensor_missing": "Only plain BERT encoders are converted; others need an ONNX export.",
    "config_unsupported": "Only plain BERT encoders are converted; others need an ONNX export.",
    "pooling_unsupported": "Only mean and CLS pooling can be converted.",
}
"""What a person can do about a model file that is refused, by the reason."""


def refusals_in_words(refusals: tuple[str, ...]) -> str:
    """Why a car does not compute; empty when it does."""
    return "; ".join(_in_words(refusal) for refusal in refusals)


def waiting_in_words(waiting: str | None) -> str:
    """Why accepted work is not running; empty when it is."""
    if waiting is None:
        return ""
    return WAITING[Waiting(waiting)] if waiting in set(Waiting) else waiting.replace("_", " ")


def _in_words(refusal: str) -> str:
    """A refusal; one that a newer control plane knows is said by its name."""
    if refusal in set(Refusal):
        return REFUSALS[Refusal(refusal)]
    return refusal.replace("_", " ")
