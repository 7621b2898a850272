"""Lets `python -m terafleet.cli` do what the command `terafleet` does."""

from terafleet.cli.main import app

if __name__ == "__main__":
    app()
