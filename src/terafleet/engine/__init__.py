"""The single-writer loop: inbox, machine, one transaction, effects; and its stores."""
