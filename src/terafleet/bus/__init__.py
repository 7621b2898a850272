"""The port for messages and its adapters; knows no message of ours."""
