"""Worked examples: no part of the library."""
