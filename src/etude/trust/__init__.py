"""Interpretable, calibrated and robust models."""
