"""The control plane: the gateway that customers speak to and the shard that decides."""
