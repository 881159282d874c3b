"""What is told of a run: summary, gate, page and tables."""
