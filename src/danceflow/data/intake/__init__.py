"""What a team brings: sources, rows, pictures, parts and splits."""
