"""Explanations, tools and programs."""
