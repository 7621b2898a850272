"""Turns lists of events and of effects into bytes of the journal and back."""

from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

import msgspec

E = TypeVar("E")
F = TypeVar("F")


class JournalUnreadable(Exception):
    """The journal or a snapshot holds bytes or a schema that this version cannot read."""


class Codec(Generic[E, F]):
    """MessagePack for one machine's union of tagged event Structs and one of effects.

    `schema` is the number written beside what is encoded. `schemas_readable` names older
    numbers whose events and snapshots still decode to the same facts.
    """

    def __init__(
        self,
        event_type: Any,
        effect_type: Any,
        schema: int,
        schemas_readable: Collection[int] = (),
        *,
        keeps_effects: bool = True,
    ) -> None:
        """Build the decoders once; raises TypeError if a union's Structs are not tagged.

        A replay needs the events alone. Effects are kept for who tells from the journal what
        happened; where nobody does, `keeps_effects` false leaves them out.
        """
        self.schema = schema
        self._keeps_effects = keeps_effects
        self._schemas_readable = frozenset((schema, *schemas_readable))
        self._encoder = msgspec.msgpack.Encoder()
        self._events: msgspec.msgpack.Decoder[list[E]]
        self._events = msgspec.msgpack.Decoder(list[event_type])
        self._effects: msgspec.msgpack.Decoder[list[F]]
        self._effects = msgspec.msgpack.Decoder(list[effect_type])

    def encode_events(self, events: Sequence[E]) -> bytes:
        """The bytes of one group of events."""
        return self._encoder.encode(events)

    def decode_events(self, body: bytes) -> list[E]:
        """The events of one group. Raises JournalUnreadable."""
        try:
            return self._events.decode(body)
        except msgspec.DecodeError as error:
            raise JournalUnreadable(f"events: {error}") from error

    def encode_effects(self, effects: Sequence[F]) -> bytes:
        """The bytes of the effects that one group had."""
        return self._encoder.encode(effects if self._keeps_effects else [])

    def decode_effects(self, body: bytes) -> list[F]:
        """The effects that one group had. Raises JournalUnreadable."""
        try:
            return self._effects.decode(body)
        except msgspec.DecodeError as error:
            raise JournalUnreadable(f"effects: {error}") from error

    def check_schema(self, schema: int) -> None:
        """Raises JournalUnreadable unless this codec can read what bears the number."""
        if schema not in self._schemas_readable:
            raise JournalUnreadable(f"schema {schema}, readable {sorted(self._schemas_readable)}")
