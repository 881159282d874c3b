"""Worlds: what a row is, what its answer should be, and how an answer is scored."""
