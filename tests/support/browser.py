"""A real browser for tests: the machine's own Chromium, and axe-core on its pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from repository import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = ROOT / "tests" / "support" / "axe" / "axe.min.js"
SERIOUS = {"serious", "critical"}


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
