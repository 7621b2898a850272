"""Decisions: two synchronous machines that take events and return effects; no clock, no I/O."""
