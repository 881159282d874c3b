"""Distil several frozen flow-matching teachers into one student on its own trajectories."""

__version__ = "0.1.0"
