"""Live inference over HTTP: requests that are answered while the customer waits."""
