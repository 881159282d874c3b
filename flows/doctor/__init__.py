"""What is wrong with a machine, a checkout and the stores they work with, and what to do."""
