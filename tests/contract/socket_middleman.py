"""Stands between a client and a server on a Unix socket; holds what they say, and cuts them off."""

import contextlib
import socket
import threading
from pathlib import Path

PIECE_BYTES = 65536
HOLD_S = 30.0


class Middleman:
    """A socket that leads to another one, as long as nobody is cut off."""

    def __init__(self, path: Path, behind: Path) -> None:
        """Listen at `path` for clients of the server at `behind`."""
        self._behind = behind
        self._open: set[socket.socket] = set()
        self._questions, self._answers = threading.Event(), threading.Event()
        self._is_refusing = False
        self.let_pass()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def hold_questions(self) -> None:
        """Keep what clients send from here on."""
        self._questions.clear()

    def hold_answers(self) -> None:
        """Keep what the server sends from here on."""
        self._answers.clear()

    def let_pass(self) -> None:
        """Let all pass, and let clients come."""
        self._is_refusing = False
        self._questions.set()
        self._answers.set()

    def cut(self, *, is_refusing: bool = False) -> None:
        """End all connections; what is held at this moment is lost. Refuse those that come."""
        self._is_refusing = is_refusing
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all of it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut(is_refusing=True)
        self._questions.set()
        self._answers.set()
        for thread in self._threads:
            thread.join(HOLD_S)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_refusing:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._behind))
                self._open |= {client, server}
                for one in (
                    threading.Thread(target=self._pass, args=(client, server, self._questions)),
                    threading.Thread(target=self._pass, args=(server, client, self._answers)),
                ):
                    one.start()
                    self._threads.append(one)

    def _pass(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                assert gate.wait(HOLD_S)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
