"""Texts as vectors, codes and answers."""
