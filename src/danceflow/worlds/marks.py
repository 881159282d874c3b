"""What marks are called that mean something outside of their world."""

SCORE = "score"
"""What retention is about."""
REALISM = "realism"
"""How far images are shaded; the best possible value is 1."""
