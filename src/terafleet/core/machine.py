"""The protocol that both machines keep: events in, effects out."""

from typing import Protocol, TypeVar

E_contra = TypeVar("E_contra", contravariant=True)
F = TypeVar("F")


class Machine(Protocol[E_contra, F]):
    """A synchronous state machine that only `handle` changes.

    Time, ids and chance come in with the events; a machine reads no clock, does no I/O and
    awaits nothing. A machine that has handled the same events is in the same state.
    """

    def handle(self, *events: E_contra) -> list[F]:
        """Take facts in their order, change, and return what is to be done about them."""
        ...

    def next_deadline_ms(self) -> int | None:
        """When to wake the machine with `TimeAdvanced`, in its own clock, or None."""
        ...

    def snapshot(self) -> bytes:
        """The whole state as bytes from which the machine can be made again."""
        ...

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests and simulations."""
        ...
