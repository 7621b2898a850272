"""Stands between one agent and its bus, and counts what their connection puts on the network."""

import contextlib
import socket
import struct
import threading
from typing import Final

import msgspec

PIECE_BYTES: Final = 65_536
# Positions in struct tcp_info of linux/tcp.h: bytes of ours that were acknowledged, bytes that
# came, segments out and in.
_TCP_INFO: Final = struct.Struct("=120xQQII")
# IP version 4 without options, TCP with time stamps.
HEADER_BYTES: Final = 20 + 20 + 12


class Traffic(msgspec.Struct, frozen=True):
    """What was carried so far, both ways: bytes of the bus's own protocol, and TCP segments."""

    payload_bytes: int
    segments: int

    @property
    def wire_bytes(self) -> int:
        """All of it with the headers of TCP and IP; without those of the link below."""
        return self.payload_bytes + HEADER_BYTES * self.segments


class CountingRelay:
    """A port of the loopback address that leads to another one, in threads of its own.

    Each connection's figures are the kernel's. Nothing is held back, so an agent sends through it
    the segments that it would send without it.
    """

    def __init__(self) -> None:
        """Listen at a free port; `target_port` is set before anybody connects."""
        self.target_port = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._agents: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where an agent connects."""
        return f"nats://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many connections agents have made so far."""
        return len(self._agents)

    def traffic(self) -> Traffic:
        """What all connections with agents carried so far."""
        payload_bytes = segments = 0
        for agent in self._agents:
            info = agent.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            acknowledged, came, segments_out, segments_in = _TCP_INFO.unpack(info)
            payload_bytes += acknowledged + came
            segments += segments_out + segments_in
        return Traffic(payload_bytes, segments)

    def __enter__(self) -> "CountingRelay":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                agent, _ = self._listener.accept()
                bus = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                return
            for one in (agent, bus):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(one)
            self._agents.append(agent)
            for pair in ((agent, bus), (bus, agent)):
                threading.Thread(target=_pass, args=pair, daemon=True).start()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
