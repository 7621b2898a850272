"""Strict parsers of model files: they read headers, never weights, and refuse with a reason."""
