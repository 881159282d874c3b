"""Files, processes and tracking: what every stage needs and no mathematics."""
