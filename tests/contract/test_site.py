"""The site of the docs as people see it: on a phone and in the dark, by mouse and by keys.

Four pages are built with the site's own settings, without the reference, which takes its time.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from browser import browser as opened
from browser import findings
from repository import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = ("index", "one-model", "scale", "reliability")
"""Wide tables, long commands, code with comments, and pictures."""

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    docs = tmp_path_factory.mktemp("site") / "docs"
    for folder in ("_site", "images"):
        shutil.copytree(ROOT / "docs" / folder, docs / folder)
    for page in PAGES:
        shutil.copy(ROOT / "docs" / f"{page}.md", docs)
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(docs),
        site_dir=str(docs.with_name("site")),
        nav=None,
        plugins=["search"],
        strict=False,  # links lead to pages that are left out
        use_directory_urls=False,
    )
    build(config)
    return Path(config.site_dir)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with opened() as found:
        yield found


@pytest.mark.parametrize(
    ("page", "view", "scheme"),
    [
        ("index", PHONE, "light"),
        ("reliability", PHONE, "light"),
        ("one-model", PHONE, "dark"),
        ("scale", DESK, "dark"),
    ],
)
def test_a_page_fits_and_axe_finds_nothing_serious(browser, site, page, view, scheme) -> None:
    context = browser.new_context(viewport=view, color_scheme=scheme, reduced_motion="reduce")
    try:
        shown = context.new_page()
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((site / f"{page}.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= view["width"]
        assert findings(shown) == []
        assert [url for url in asked if not url.startswith("file:")] == []
        assert shown.evaluate("document.body.dataset.mdColorScheme") == (
            "slate" if scheme == "dark" else "default"
        )
    finally:
        context.close()


def test_without_what_is_added_to_the_theme_a_page_has_findings(browser, site) -> None:
    """So the test above sees what it is for."""
    page = browser.new_page(viewport=PHONE)
    page.route("**/_site/*", lambda route: route.abort())
    page.goto((site / "one-model.html").as_uri())
    rules = {found.partition(":")[0] for found in findings(page)}
    page.close()
    assert {"color-contrast", "link-in-text-block"} <= rules


def test_what_scrolls_is_reached_by_keys(browser, site) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto((site / "scale.html").as_uri())
    wide = page.evaluate(
        """[...document.querySelectorAll(".md-typeset *")].filter(
          (e) => getComputedStyle(e).overflowX === "auto" && e.scrollWidth > e.clientWidth
        ).map((e) => e.tabIndex)"""
    )
    page.close()
    assert wide
    assert set(wide) == {0}


def test_the_settings_name_what_is_added() -> None:
    """A style that no page loads would help nobody."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in ("extra_css", "extra_javascript"):
        line = next(line for line in text.splitlines() if line.startswith(name))
        for file in yaml.safe_load(line)[name]:
            assert (ROOT / "docs" / file).is_file()
