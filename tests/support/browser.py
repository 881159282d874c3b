"""A real browser for tests: the machine's own Chromium, and axe-core on its pages."""

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from repository import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = ROOT / "tests" / "support" / "axe" / "axe.min.js"
SERIOUS = {"serious", "critical"}
TILE = 24  # pixels of the screen that are one of a golden picture
MOST = 9.0  # mean levels of 256 that a sound page may differ by: fonts are not the same everywhere


def program() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found is not None, "tests of pages need Chromium: apt-get install chromium"
    return found


@contextmanager
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def findings(page: "Page") -> list[str]:
    """What axe-core finds serious or critical on a page: rule and elements."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("() => axe.run(document)")
    return [
        f"{item['id']}: {node['html'][:160]} {node['any'][:1]}"
        for item in found["violations"]
        if item["impact"] in SERIOUS
        for node in item["nodes"]
    ]


def small_screen(page: "Page") -> Image.Image:
    """What the screen shows, so small that letters are shades."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return shot.resize((shot.width // TILE, shot.height // TILE), Image.Resampling.BOX)


def assert_looks(
    golden: Path, sound: Image.Image, broken: Sequence[Image.Image], *, is_recorded: bool
) -> None:
    """Hold a page to its golden picture, and that broken ones are far from it."""
    if is_recorded:
        sound.save(golden)
    expected = np.asarray(Image.open(golden).convert("RGB"), float)
    gaps = [np.abs(np.asarray(shot, float) - expected).mean() for shot in (sound, *broken)]
    assert gaps[0] < MOST
    assert min(gaps[1:]) > 2 * MOST, gaps
