"""Implementations of the agent's ports; named only by `agent/app.py`."""
