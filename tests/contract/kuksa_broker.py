"""A small KUKSA databroker on the stubs of `kuksa-client`, in threads of the test's own process.

It answers as kuksa.val.v2 says, and misbehaves as a test wants. It checks no types and no scopes.
"""

import queue
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from kuksa.val.v2 import types_pb2, val_pb2, val_pb2_grpc

HOST = "127.0.0.1"
SCALARS = {bool: "bool", int: "int32", float: "float", str: "string"}
NO_VALUE = types_pb2.Datapoint()
LOOK_S = 0.02
STOP_S = 5.0

Stream = queue.SimpleQueue[dict[str, Any] | grpc.StatusCode | None]
"""What a subscriber is told: data points by path, or how its stream ends."""


def point_of(value: Any) -> Any:
    """A data point: None is no value, a `Value` of the protocol is taken as it is."""
    if value is None:
        return NO_VALUE
    if isinstance(value, types_pb2.Value):
        return types_pb2.Datapoint(value=value)
    if isinstance(value, tuple):
        texts = types_pb2.StringArray(values=value)
        return types_pb2.Datapoint(value=types_pb2.Value(string_array=texts))
    said = types_pb2.Value()
    setattr(said, SCALARS[type(value)], value)
    return types_pb2.Datapoint(value=said)


class Databroker(val_pb2_grpc.VALServicer):  # type: ignore[misc]
    """Knows the signals that were set; a test changes its public names as it runs."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.points = {path: point_of(value) for path, value in (values or {}).items()}
        self.denied: set[str] = set()
        self.token = ""
        self.is_hanging = False
        """Whether what is asked is never answered, and the streams say nothing."""
        self.drops_changes = False
        """Whether the streams stay open and say nothing more."""
        self.says_too_little = False
        self.answer_s = 0.0
        """How long an answer for several signals is on its way."""
        self.port = 0
        self.questions: list[str] = []
        """The names of the calls that came."""
        self.subscribed: list[tuple[str, ...]] = []
        self.streams: set[Stream] = set()
        self._server: Any = None

    def start(self, tls: tuple[Path, Path] | None = None) -> None:
        """Serve on a free port, later on the same one; `tls` are certificate and private key."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
        val_pb2_grpc.add_VALServicer_to_server(self, self._server)
        if tls is None:
            self.port = self._server.add_insecure_port(self.address)
        else:
            pair = (tls[1].read_bytes(), tls[0].read_bytes())
            credentials = grpc.ssl_server_credentials([pair])
            self.port = self._server.add_secure_port(self.address, credentials)
        self._server.start()

    def stop(self) -> None:
        """End at once, all streams with it."""
        server, self._server = self._server, None
        if server is not None:
            assert server.stop(None).wait(STOP_S)

    @property
    def address(self) -> str:
        """Where it is."""
        return f"{HOST}:{self.port}"

    def set(self, path: str, value: Any) -> None:
        """From here on a signal says this; who subscribed it hears of it."""
        self.points[path] = point_of(value)
        for stream in tuple(self.streams):
            stream.put({path: self.points[path]})

    def end_streams(self, code: grpc.StatusCode | None = None) -> None:
        """End all streams, well or with a status."""
        for stream in tuple(self.streams):
            stream.put(code)

    # The service.

    def GetValue(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One value."""
        self._admit("GetValue", (request.signal_id.path,), context)
        return val_pb2.GetValueResponse(data_point=self.points[request.signal_id.path])

    def GetValues(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Several values."""
        paths = tuple(one.path for one in request.signal_ids)
        self._admit("GetValues", paths, context)
        points = [self.points[path] for path in paths[int(self.says_too_little) :]]
        time.sleep(self.answer_s)
        return val_pb2.GetValuesResponse(data_points=points)

    def Subscribe(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """All values, then what changes."""
        paths = tuple(request.signal_paths)
        self._admit("Subscribe", paths, context)
        stream: Stream = queue.SimpleQueue()
        self.streams.add(stream)
        self.subscribed.append(paths)
        try:
            yield val_pb2.SubscribeResponse(entries={path: self.points[path] for path in paths})
            while isinstance(said := self._next(stream, context), dict):
                entries = {path: point for path, point in said.items() if path in paths}
                if entries and not (self.is_hanging or self.drops_changes):
                    yield val_pb2.SubscribeResponse(entries=entries)
            if said is not None:
                context.abort(said, "as the test wants")
        finally:
            self.streams.discard(stream)

    @staticmethod
    def _next(stream: Stream, context: Any) -> dict[str, Any] | grpc.StatusCode | None:
        while context.is_active():
            try:
                return stream.get(timeout=LOOK_S)
            except queue.Empty:
                continue
        return None

    def _admit(self, call: str, paths: tuple[str, ...], context: Any) -> None:
        self.questions.append(call)
        is_never_answered = self.is_hanging
        while is_never_answered and context.is_active():
            time.sleep(LOOK_S)
        told = dict(context.invocation_metadata())
        if self.token and told.get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated")
        if not set(paths) <= set(self.points):
            context.abort(grpc.StatusCode.NOT_FOUND, "Path not found")
        if set(paths) & self.denied:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "Permission denied")
