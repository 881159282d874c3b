"""Metrics beside the score."""
