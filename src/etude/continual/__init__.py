"""Learning from a stream without forgetting."""
