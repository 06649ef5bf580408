"""Diffusion models and what they forget."""
