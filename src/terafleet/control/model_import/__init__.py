"""Makes model files that cars run out of files that people publish."""
