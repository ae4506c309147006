"""A world of moving shapes to learn from, and what a model learns of it."""
