"""Kernel machines of infinitely wide and deep networks."""
