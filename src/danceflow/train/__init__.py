"""Training: the teachers of the embedded default, and the student."""
