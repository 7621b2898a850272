"""Throws at a gateway what its description allows, and what it doesn't; holds the law of answers.

The law: every answer comes, is in the form that is described for it, and no fault is the
gateway's own; where it can't do what it should it says when to come again.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import requests
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from terafleet.control.gateway.description import STREAMED
from terafleet.protocol.errors import ERRORS, ErrorReply
from terafleet.protocol.live_answers import DONE

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
PATIENCE_S = 20.0
COMES_BACK = frozenset({503, 507})
"""The statuses of overload."""

NO_HTTP = b"This can't be read as an HTTP request."
"""What is told to who sends no HTTP; it never comes to a route."""

Fit = Callable[[Any], None]


class Thrower:
    """Sends generated requests of one operation after the other.

    `fit` may change a case before it is sent, to fit what the gateway has.
    """

    def __init__(self, url: str, secret: str, examples: int, fit: Fit = lambda _: None) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {secret}"}
        self._examples = examples
        self._fit = fit
        self._session = requests.Session()
        self.sent = 0

    def __enter__(self) -> "Thrower":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, path: str) -> Any:
        """The JSON at an address."""
        return self._session.get(f"{self._url}{path}", timeout=PATIENCE_S).json()

    def throw(self, operation: Any, mode: GenerationMode) -> int:
        """Send what the description allows (or what it doesn't); how many answers were good.

        Raises hypothesis' Unsatisfiable where there is nothing of the kind.
        """
        good = 0

        @settings(
            max_examples=self._examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            nonlocal good
            self._fit(case)
            self.sent += 1
            # Sent from here, since schemathesis reads no more than the beginning of a stream.
            sent = case.as_transport_kwargs(base_url=self._url, headers=self._headers)
            answer = self._session.request(**sent, timeout=PATIENCE_S)
            good += check_answer(case, answer)

        send()
        return good


def check_answer(case: Any, response: requests.Response) -> bool:
    """Hold the law; whether it is a good answer."""
    if NO_HTTP in response.content:
        assert response.status_code == 400
        return False
    assert response.headers["x-request-id"].startswith("req_")
    if response.status_code >= 400:
        _check_error(case, response)
        return False
    case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])
    if response.headers["content-type"][0].startswith("text/event-stream"):
        _check_events(response.text, STREAMED[case.path])
    return True


def _check_error(case: Any, response: requests.Response) -> None:
    status = response.status_code
    if status >= 500:
        told = f"{case.as_curl_command()}\n{response.text}"
        assert status in COMES_BACK, told
        assert int(response.headers["retry-after"]) > 0, told
    if case.method.upper() != "HEAD":
        error = msgspec.json.decode(response.content, type=ErrorReply).error
        assert ERRORS[error.code].status == status
        assert ERRORS[error.code].type == error.type


def _check_events(text: str, chunk: type[msgspec.Struct]) -> None:
    """Every event is a chunk, and the last one says that it is the last."""
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == (f"data: {DONE}", "")
    for event in events:
        if not event.startswith(": "):
            assert event.startswith("data: ")
            msgspec.json.decode(event.removeprefix("data: "), type=chunk)
