"""Learning from the examples in a prompt."""
