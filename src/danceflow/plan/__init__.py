"""What a training costs, worked out before anything runs: size, memory, evaluations, hours."""
