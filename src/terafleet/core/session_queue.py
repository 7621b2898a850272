"""The live sessions that wait for a slot: a line for each model, in the order of their asking.

It does not know who could be served.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

import msgspec

from terafleet.core.ids import ModelId, SessionId
from terafleet.core.records import SessionLease


class SessionQueue:
    """All who wait. Nothing but an iteration looks at more than one of them.

    Each has a number, greater than all before it in its line.
    """

    def __init__(self, sessions: Iterable[SessionLease] = ()) -> None:
        """With those of before, in their order."""
        self._sessions: dict[SessionId, SessionLease] = {}
        self._lines: dict[ModelId, OrderedDict[SessionId, None]] = {}
        for session in sessions:
            self._put(session)

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[SessionLease]:
        """All of them, the longest waiting first."""
        return iter(self._sessions.values())

    def get(self, session_id: SessionId) -> SessionLease | None:
        """A session, if it waits."""
        return self._sessions.get(session_id)

    def join(self, session: SessionLease) -> None:
        """A session waits from here on, behind all others."""
        line = self._lines.get(session.model_id)
        # Counted from the last one that is there, so that a snapshot needs no more than those.
        number = self._sessions[next(reversed(line))].number + 1 if line else 0
        self._put(msgspec.structs.replace(session, number=number))

    def change(self, session: SessionLease) -> None:
        """A session that waits has asked anew, for the same model; it keeps its place."""
        assert session.number == self._sessions[session.session_id].number
        self._sessions[session.session_id] = session

    def leave(self, session_id: SessionId) -> None:
        """A session waits no more, if it did."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        line = self._lines[session.model_id]
        del line[session_id]
        if not line:
            del self._lines[session.model_id]

    def models(self) -> list[ModelId]:
        """The models that somebody waits for."""
        return list(self._lines)

    def line(self, model_id: ModelId) -> Iterator[SessionLease]:
        """Who waits for a model, the longest waiting first; ask for nobody else meanwhile."""
        return map(self._sessions.__getitem__, self._lines.get(model_id, ()))

    def waiting(self, model_id: ModelId) -> int:
        """How many wait for a model."""
        return len(self._lines.get(model_id, ()))

    def place_of(self, session: SessionLease) -> int:
        """The place of a session in its line, 1 being the first; of one that waits not, the next.

        Exact for the first, for who does not wait yet, and for all while everybody leaves from
        the front. Who left from the middle may be counted still, but nobody is left out.
        """
        length = self.waiting(session.model_id)
        if session.session_id not in self._sessions:
            return length + 1
        first = next(self.line(session.model_id))
        return min(session.number - first.number + 1, length)

    def _put(self, session: SessionLease) -> None:
        self._sessions[session.session_id] = session
        line = self._lines.setdefault(session.model_id, OrderedDict())
        line[session.session_id] = None
