"""The implementations of the bus: in memory and over NATS."""
