"""Terafleet turns a fleet of parked electric cars into an AI cloud."""
