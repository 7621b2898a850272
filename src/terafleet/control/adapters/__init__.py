"""Implementations of the control plane's ports; named only by `control/app.py`."""
