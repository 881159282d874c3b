"""Prefect flows: when a stage runs, how often, and what happens when it fails."""
