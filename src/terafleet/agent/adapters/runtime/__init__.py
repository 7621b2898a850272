"""Implementations of the port `Runtime`."""
