"""Choosing actions and architectures."""
