"""Smaller and faster networks."""
