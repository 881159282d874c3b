"""The studio as a person uses it, in a real browser, with nothing between it and the page."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import assert_looks, findings, small_screen
from model_service import write_student
from PIL import Image
from playwright.sync_api import expect
from scored import evidence_of
from studio_server import Running, running_studio

from danceflow.ops.tracking import open_store
from danceflow.pictures import png_bytes
from danceflow.registry.open import open_folder
from danceflow.registry.promotion import CHALLENGER, CHAMPION
from danceflow.registry.register import register_student
from danceflow.studio.pages import percent, seconds
from danceflow.studio.recipe import Recipe
from danceflow.studio.tree import Made

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESK, PHONE = {"width": 1360, "height": 860}, {"width": 390, "height": 844}
GOLDEN = Path(__file__).with_name("golden.png")
PATIENCE_MS = 60_000


@contextmanager
def person(browser: "Browser", studio: Running, **options: Any) -> Iterator["Page"]:
    """Somebody at a screen; whatever the page complains of, or loads from elsewhere, fails."""
    context = browser.new_context(viewport=DESK, **{"reduced_motion": "reduce", **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((studio.address, "blob:", "data:"))
            else wrong.append(asked.url)
        ),
    )
    page.goto(studio.address)
    yield page
    told = [text for text in wrong if "status of 4" not in text]
    context.close()
    assert told == []


def ask(page: "Page", prompt: str, **fields: str) -> str:
    """Ask for a picture, and return the name of what is shown then."""
    page.fill("#prompt", prompt)
    if fields and page.locator("#settings[open]").count() == 0:
        page.click("#settings summary")
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.press("#prompt", "Control+Enter")
    page.locator("#shown h2", has_text=prompt).wait_for()
    return str(page.get_attribute("#shown", "data-node"))


def drop(page: "Page", name: str, data: bytes) -> None:
    """Drop a file onto the page."""
    page.evaluate(
        """([name, text]) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const held = new DataTransfer();
          held.items.add(new File([bytes], name));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: held, bubbles: true }));
        }""",
        [name, base64.b64encode(data).decode()],
    )


def pixels(studio: Running, name: str) -> Any:
    return pixels_of(studio, studio.studio.tree.node(name).picture)


def pixels_of(studio: Running, digest: str) -> Any:
    return np.asarray(studio.studio.tree.picture(digest))


def test_from_a_prompt_to_a_local_and_a_global_change_and_a_branch(browser, studio) -> None:
    with person(browser, studio) as page:
        page.locator("h2", has_text="Make your first picture").wait_for()
        root = ask(page, "a red circle and a blue square", seed="4")
        local = ask(page, "make the red circle blue", seed="5")
        both = ask(page, "make it grayscale", seed="6")
        tree = studio.studio.tree
        assert [node.id for node in tree.lineage(both)] == [root, local, both]
        expect(page.locator(".path li")).to_have_count(3)
        page.click("#restart")  # back to the root, and another way from there
        page.locator(f"#shown[data-node='{root}']").wait_for()
        branch = ask(page, "change the background to black", seed="7")
        assert tree.node(branch).parent == root
        page.locator(f"#node-{branch}[aria-current]").wait_for()
        expect(page.locator("#tree .leaf")).to_have_count(4)
        assert (
            page.locator("#shown .facts").inner_text().count("ms")
            + page.locator("#shown .facts").inner_text().count(" s")
            > 0
        )
        page.click("#pin")
        page.locator("#pin[aria-pressed='true']").wait_for()
        page.click("#more summary")
        page.fill("#title", "night")
        page.press("#title", "Enter")
        page.locator("#shown h2", has_text="night").wait_for()
        page.click("#archive")
        page.locator("#archive", has_text="Bring back").wait_for()
        page.locator(f"#node-{branch}").wait_for(state="detached")
        page.click("#undo")
        page.locator(f"#node-{branch}").wait_for()
        page.go_back()
        page.locator("#shown").wait_for()


def test_again_makes_a_sibling_and_settings_come_back(browser, studio) -> None:
    with person(browser, studio) as page:
        first = ask(page, "two rings", seed="21", steps="3")
        page.fill("#seed", "5")
        page.click("#restore")
        expect(page.locator("#seed")).to_have_value("21")
        expect(page.locator("#prompt")).to_have_value("two rings")
        expect(page.locator("#go")).to_have_text("Make")
        page.goto(f"{studio.address}/?node={first}")
        page.click("#again")
        page.locator(f"#shown:not([data-node='{first}']) h2", has_text="two rings").wait_for()
        again = studio.studio.tree.node(str(page.get_attribute("#shown", "data-node")))
        assert again.recipe is not None
        assert (again.parent, again.recipe.steps) == (None, 3)
        assert again.recipe.seed != 21


def test_two_pictures_are_compared_over_beside_and_less_each_other(browser, studio) -> None:
    with person(browser, studio) as page:
        ask(page, "a red circle", seed="4")
        ask(page, "make the red circle blue", seed="5")
        page.click("#compare-link")
        page.locator(".layers").wait_for()
        page.focus("#at")
        page.keyboard.press("Home")
        share = page.evaluate("document.querySelector('.layers').style.getPropertyValue('--at')")
        assert share == "0%"
        page.click("text=Side by side")
        page.focus("#beside-view")
        for key in ("+", "+", "ArrowLeft"):
            page.keyboard.press(key)
        moved = page.evaluate(
            "[...document.querySelectorAll('.window img')]"
            ".map((image) => getComputedStyle(image).transform)"
        )
        assert moved[0] == moved[1] != "none"
        assert moved[0].startswith("matrix(2")
        page.click("text=Difference")
        gap = page.locator(".view-gap img")
        assert gap.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
        assert re.search(r"\d+ % of the pixels were left alone", page.inner_text("#kept"))
        page.keyboard.press("Escape")
        page.locator("#shown").wait_for()


def test_a_mask_that_is_painted_keeps_the_rest_to_the_last_level(browser, studio) -> None:
    with person(browser, studio) as page:
        source = ask(page, "a red circle and a blue square", seed="4")
        page.click("#mask-box summary")
        canvas = page.locator("#mask-canvas:not([aria-busy])")
        page.locator("#hints .chip").first.wait_for()
        page.fill("#brush", "6")
        canvas.scroll_into_view_if_needed()
        area = canvas.bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 2, steps=4)
        page.mouse.up()
        expect(canvas).to_have_attribute("aria-label", re.compile("percent may change"))
        edit = ask(page, "make it grayscale", seed="5")
        same = (pixels(studio, source) == pixels(studio, edit)).all(axis=2)
        assert same[:, 16:].all()
        assert not same.all()
        assert "masked" in page.inner_text("#shown .facts")
        # And with keys alone, on the picture that was just made, of which nothing is painted yet.
        canvas.wait_for(state="attached")
        page.locator("#mask-canvas[aria-label*='nothing is painted']").wait_for(state="attached")
        page.focus("#prompt")
        page.keyboard.press("Escape")
        page.keyboard.press("m")
        page.keyboard.press("Space")
        page.locator("#mask-canvas[aria-label*='percent may change']").wait_for()
        page.click("#mask-invert")
        page.click("#mask-clear")
        page.locator("#mask-canvas[aria-label*='nothing is painted']").wait_for()


def test_what_is_downloaded_and_dropped_in_again_restores_prompt_seed_and_source(
    browser, studio
) -> None:
    with person(browser, studio) as page:
        source = ask(page, "a red circle", seed="31")
        ask(page, "make it grayscale", seed="32")
        with page.expect_download() as begun:
            page.keyboard.press("Escape")
            page.keyboard.press("d")
        file = Path(begun.value.path()).read_bytes()
        assert begun.value.suggested_filename == "make-it-grayscale.png"
        assert Image.open(io.BytesIO(file)).size == (32, 32)
        page.goto(studio.address)
        drop(page, "make-it-grayscale.png", file)
        page.locator(f"#source[value='{source}']").wait_for(state="attached")
        page.locator("#settings[open]").wait_for()
        expect(page.locator("#prompt")).to_have_value("make it grayscale")
        expect(page.locator("#seed")).to_have_value("32")


def test_a_file_that_is_no_picture_is_told_and_one_that_is_joins(browser, studio) -> None:
    with person(browser, studio) as page:
        drop(page, "notes.txt", b"milk, bread")
        page.locator("#notice", has_text="this picture is no picture").wait_for()
        page.click("#notice button")
        page.set_input_files(
            "#file",
            {
                "name": "my cat.png",
                "mimeType": "image/png",
                "buffer": png_bytes(Image.new("RGB", (40, 30), "green")),
            },
        )
        page.locator("#shown h2", has_text="my cat").wait_for()
        expect(page.locator("#go")).to_have_text("Change")


def test_a_picture_is_made_of_several_others(browser, several_student, tmp_path) -> None:
    """Two are brought, a third is asked for; all are in the tree, and both sources with the last.

    The other one counts: without it the same seed makes another picture.
    """
    with (
        running_studio(tmp_path / "tree", several_student) as studio,
        person(browser, studio) as page,
    ):
        for name, colour in (("cat", "green"), ("hat", "purple")):
            file = png_bytes(Image.new("RGB", (24, 24), colour))
            given = {"name": f"{name}.png", "mimeType": "image/png", "buffer": file}
            page.set_input_files("#file", given)
            page.locator("#shown h2", has_text=name).wait_for()
        hat = str(page.get_attribute("#shown", "data-node"))
        page.locator("#tree .leaf", has_text="cat").click()
        page.locator("#shown h2", has_text="cat").wait_for()
        cat = str(page.get_attribute("#shown", "data-node"))
        # The fields of the picture before are there until those of this one have come.
        page.locator(f"#node-{cat}[aria-current]").wait_for()
        expect(page.locator("#further:not(.htmx-request) select")).to_have_count(2)
        page.locator("#further select").first.select_option(hat)
        both = studio.studio.tree.node(ask(page, "put the hat on the cat", seed="3"))
        expect(page.locator("#tree .leaf")).to_have_count(3)
        (shown,) = page.locator("#shown .facts img").all()
        shown.evaluate("(picture) => picture.decode()")
        assert both.recipe is not None
        assert (both.parent, len(both.recipe.sources)) == (cat, 2)
        assert pixels_of(studio, both.further[0])[8, 8].tolist() == [128, 0, 128]
        assert findings(page) == []
        for place, status in ((0, 200), (1, 200), (2, 404)):
            answer = page.request.get(f"{studio.address}/seen/{both.id}.png?place={place}")
            assert answer.status == status
        page.goto(f"{studio.address}/?node={cat}")
        page.locator("#further select").first.wait_for()
        alone = studio.studio.tree.node(ask(page, "put the hat on the cat", seed="3"))
        assert alone.further == ()
        assert alone.picture != both.picture


def test_a_run_is_seen_step_by_step_and_cancelled(browser, studio) -> None:
    with person(browser, studio) as page:
        before = len(studio.studio.tree.nodes(archived=True))
        page.click("#settings summary")
        page.fill("#steps", "100")
        page.fill("#variants", "8")
        page.fill("#prompt", "a ring")
        page.click("#go")
        page.locator(".task", has_text=re.compile(r"step \d+ of 800")).wait_for()
        page.click("button:has-text('Cancel')")
        page.locator(".task", has_text="cancelled").wait_for()
        page.click("button:has-text('Put away')")
        page.locator(".task").wait_for(state="detached")
        assert len(studio.studio.tree.nodes(archived=True)) == before


def test_two_people_at_once_see_the_queue_and_one_tree(browser, studio) -> None:
    with person(browser, studio) as mine, person(browser, studio) as theirs:
        mine.click("#settings summary")
        mine.fill("#steps", "60")
        mine.fill("#variants", "4")
        # An idle page asks every 2.5 s: one task alone may be over by then.
        for prompt in ("a red ring", "a blue star", "three circles", "two rings"):
            mine.fill("#prompt", prompt)
            mine.click("#go")
            mine.locator(".task", has_text=prompt).wait_for()
        theirs.locator(".task", has_text="(somebody else)").first.wait_for()
        ask(theirs, "a green cross", seed="1")
        mine.locator("#shown h2", has_text="two rings").wait_for()
        theirs.locator("#tree .leaf", has_text="two rings").first.wait_for()
        mine.locator("#tree .leaf", has_text="a green cross").first.wait_for()
        assert theirs.locator("#shown h2").inner_text() == "a green cross"


def test_words_are_suggested_and_unknown_ones_told_before_the_run(browser, studio) -> None:
    with person(browser, studio) as page:
        page.fill("#prompt", "a red unicorn")
        page.locator("#hints .warning", has_text="'unicorn'").wait_for()
        page.fill("#prompt", "a red")
        page.click("#hints .chip:has-text('a red circle and a blue square')")
        expect(page.locator("#prompt")).to_have_value("a red circle and a blue square")
        page.locator("#hints .warning").wait_for(state="detached")


def test_a_student_beside_its_teacher_opens_both(browser, studio) -> None:
    with person(browser, studio) as page:
        ask(page, "a red circle", seed="2")
        page.fill("#prompt", "make the red circle blue")
        page.select_option("#beside", "teacher:local_edit")
        page.click("#go")
        page.locator("#compare").wait_for()
        prompt = "make the red circle blue"
        names = [f"{prompt} · student", f"{prompt} · teacher local"]
        expect(page.locator(".split span")).to_have_text(names)


def test_keys_alone_do_everything(browser, studio) -> None:
    with person(browser, studio) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        seen = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.id"))
        names = {"undo", "theme", "prompt", "model", "beside", "go", "file", "archived"}
        assert names <= seen
        page.focus("#prompt")
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(style) == "solid"
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        page.locator("#keys[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("#keys").wait_for(state="hidden")
        page.keyboard.press("j")
        page.locator("#shown").wait_for()
        first = page.get_attribute("#shown", "data-node")
        page.locator(f"#node-{first}[aria-current]").wait_for()
        page.keyboard.press("j")
        page.locator(f"#shown:not([data-node='{first}'])").wait_for()
        page.keyboard.press("r")
        expect(page.locator("#title")).to_be_focused()
        page.keyboard.press("Escape")
        page.keyboard.press("t")
        page.locator("html[data-theme='light']").wait_for()
        page.keyboard.press("n")
        page.locator("h2", has_text="A new picture").wait_for()
        page.keyboard.press("/")
        page.keyboard.type("a?")  # letters are letters where text is written
        expect(page.locator("#prompt")).to_have_value("a?")


def test_the_champion_beside_the_challenger_is_asked_by_name_with_the_same_seed(
    browser, tmp_path, tracking
) -> None:
    """Two versions of a real registry; a name is whatever version has it at that moment."""
    store, name = open_store(tracking), tracking.registered_model
    students = [write_student(tmp_path / str(seed) / "student", seed) for seed in (1, 2)]
    for student, alias in zip(students, (CHAMPION, CHALLENGER), strict=True):
        run_id = store.client.create_run(store.experiment_id).info.run_id
        made = register_student(store, lambda run=run_id: run, student, name, evidence_of(0.5))
        store.client.set_registered_model_alias(name, alias, made.version.version)
    with running_studio(tmp_path / "tree", None, store=tracking) as studio:
        with person(browser, studio) as page:
            page.locator("#model option[value='champion']").wait_for(state="attached")
            page.select_option("#model", CHAMPION)
            page.select_option("#beside", CHALLENGER)
            page.fill("#prompt", "a red circle")
            page.click("#settings summary")
            page.fill("#seed", "7")
            page.click("#go")
            page.locator("#compare").wait_for()
            shown = [f"a red circle · {name} v{number}" for number in (1, 2)]
            expect(page.locator(".split span")).to_have_text(shown)
        nodes = studio.studio.tree.nodes(archived=False)
        told = {(node.recipe.version, node.recipe.seed) for node in nodes}
        assert told == {(1, 7), (2, 7)}
        for node in nodes:
            alone = open_folder(students[node.recipe.version - 1], None, "cpu")
            (picture,) = alone.generate(["a red circle"], seed=7)
            assert np.array_equal(pixels(studio, node.id), np.asarray(picture))


@pytest.mark.parametrize("view", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, studio, view, scheme) -> None:
    with person(browser, studio, color_scheme=scheme) as page:
        ask(page, "a red circle", seed="1")
        ask(page, "make it grayscale", seed="2")
        edits = [n for n in studio.studio.tree.nodes(archived=False) if n.parent and n.recipe]
        page.set_viewport_size(view)
        for path in ("", f"?node={edits[0].id}", f"?node={edits[0].id}&with={edits[0].parent}"):
            page.goto(f"{studio.address}/{path}")
            page.locator("#hints .chip").first.wait_for()
            for part in ("#settings", "#mask-box", "#history-box", "#more"):
                if page.locator(f"{part}:not([hidden]) summary").count():
                    page.click(f"{part} summary")
            page.locator("#history .chip").first.wait_for()
            assert findings(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= view["width"]
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert findings(page) == []


def test_the_tree_is_there_after_a_restart(browser, scenes_student, tmp_path) -> None:
    with (
        running_studio(tmp_path / "tree", scenes_student) as studio,
        person(browser, studio) as page,
    ):
        ask(page, "a red circle", seed="1")
        made = ask(page, "make it grayscale", seed="2")
    with (
        running_studio(tmp_path / "tree", scenes_student) as studio,
        person(browser, studio) as page,
    ):
        page.click(f"#node-{made}")
        page.locator("#shown h2", has_text="make it grayscale").wait_for()
        expect(page.locator(".path li")).to_have_count(2)


def test_a_studio_that_went_away_is_told_and_found_again(browser, scenes_student, tmp_path) -> None:
    with running_studio(tmp_path / "tree", scenes_student) as studio:
        context = browser.new_context()
        page = context.new_page()
        page.goto(studio.address)
    page.locator("#notice", has_text="does not answer").wait_for()
    context.close()


def test_the_page_looks_as_it_did(browser, scenes_student, tmp_path, request) -> None:
    """A page without its style, or with its parts in a heap, is far from the golden picture."""
    with running_studio(tmp_path / "tree", scenes_student) as studio:
        recipe = Recipe(
            prompt="a red circle",
            capability="text to image",
            seed=1,
            steps=4,
            guidance=1.0,
            size="32x32",
            model="student",
            version=0,
            digest="",
        )
        picture = Image.new("RGB", (32, 32), "#e8b0c0")
        picture.paste("#c02020", (12, 12, 22, 22))
        other = picture.copy()
        other.paste("#2040c0", (12, 12, 22, 22))
        edit = recipe.model_copy(update={"prompt": "make it blue", "capability": "edit"})
        (root,) = studio.studio.tree.add(None, [Made(picture, recipe, seconds=0.3)])
        made = Made(other, edit, picture, seconds=0.3, kept=0.9, kept_exactly=0.9)
        (child,) = studio.studio.tree.add(root.id, [made])
        with person(browser, studio, color_scheme="light") as page:
            page.goto(f"{studio.address}/?node={child.id}")
            page.locator("#hints .chip").first.wait_for()
            page.locator("#hints").evaluate("(hints) => hints.remove()")
            sound = small_screen(page)
            page.evaluate("document.styleSheets[0].disabled = true")
            broken = small_screen(page)
    assert_looks(GOLDEN, sound, [broken], is_recorded=request.config.getoption("--record-golden"))


def test_shares_and_times_are_told_as_people_read_them() -> None:
    shown = [percent(share) for share in (0.0, 0.004, 0.5, 0.997, 1.0)]
    assert shown == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
    assert [seconds(value) for value in (0.2, 3.21)] == ["200 ms", "3.2 s"]
