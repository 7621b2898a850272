"""Implementations of the store port: memory and SQLite."""
