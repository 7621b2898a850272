"""What crosses a network: agent messages, OpenAI subset, admin resources, errors, file formats."""
