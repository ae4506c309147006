"""Breaks things on purpose: nothing is lost silently, nothing hangs."""
