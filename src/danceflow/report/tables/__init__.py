"""Sweeps as tables and charts."""
