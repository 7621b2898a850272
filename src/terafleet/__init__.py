"""Terafleet turns a fleet of parked electric cars into an AI cloud."""

__version__ = "0.1.0"
