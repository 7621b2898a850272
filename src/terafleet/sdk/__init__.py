"""A light client of the control plane: httpx and msgspec only."""
