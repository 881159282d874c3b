"""Samples: where they come from, how they are checked, and what is computed from them once."""
