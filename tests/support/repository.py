"""Where this repository lies, whatever the depth of the test that asks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
