"""What decides a result decides its key, and nothing else does."""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from repository import ROOT
from tiny_project import small_data, small_params

from danceflow.ops import code, keys
from danceflow.ops.code import SOURCE, reached_files
from danceflow.ops.keys import Key
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.stages import STAGES

# Every piece of work: its stage, and its key of a checkout's parameters and given digests.
Maker = Callable[[Params, str], Key]
WORK: Mapping[str, tuple[str, Maker]] = {
    "prepare": ("prepare", lambda p, d: keys.prepared(p.data, d)),
    "cache": ("cache", lambda p, d: keys.cached(p, "t2i", p.capabilities["t2i"], d, "v", "t")),
    "cache, validation rows": (
        "cache",
        lambda p, d: keys.cached(p, "t2i", p.capabilities["t2i"], "r", d, "t"),
    ),
    "cache, teachers": (
        "cache",
        lambda p, d: keys.cached(p, "t2i", p.capabilities["t2i"], "r", "v", d),
    ),
    "distill, teachers": ("distill", lambda p, d: keys.trained(p, d, {"t2i": "c"}, {"t2i": "v"})),
    "distill, caches": ("distill", lambda p, d: keys.trained(p, "t", {"t2i": d}, {"t2i": "v"})),
    "distill, rows": ("distill", lambda p, d: keys.trained(p, "t", {"t2i": "c"}, {"t2i": d})),
    "evaluation": ("evaluate", lambda p, d: keys.answered({"rows": d})),
    "text-encoder": ("teachers", lambda p, d: keys.text_encoder(p, [d])),
    "teacher": ("teachers", lambda p, d: keys.teacher(p, "base", "f", None, d)),
    "teacher, frozen": ("teachers", lambda p, d: keys.teacher(p, "base", d, None, "r")),
    "teacher, init": ("teachers", lambda p, d: keys.teacher(p, "base", "f", d, "r")),
}
# One file of every package, each the inmost one of its kind.
FILES = (
    "capability.py",
    "columns.py",
    "params/read.py",
    "cli.py",
    "data/cache.py",
    "data/cached_rows.py",
    "data/intake/parts.py",
    "train/teachers/stream.py",
    "digits/score.py",
    "evaluate/task.py",
    "report/page/page.py",
    "evaluate/quick.py",
    "evaluate/judge/questions.py",
    "report/page/templates/report.css",
    "fields/objective.py",
    "fields/rollout.py",
    "fields/seeds.py",
    "method.py",
    "models/bring.py",
    "models/families/sd3.py",
    "ops/determinism.py",
    "ops/files.py",
    "ops/keys.py",
    "ops/tracking/store.py",
    "plan/cost.py",
    "registry/register.py",
    "scenes/render.py",
    "train/distill/trainer.py",
    "train/teachers/finetune.py",
    "train/teachers/scores.py",
    "train/teachers/text_encoder.py",
)


@pytest.fixture(scope="module")
def params() -> Params:
    return small_params()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the package in the place of the running one, as far as keys know."""
    place = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "danceflow", place / "danceflow", ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "SOURCE", place)
        code._digest.cache_clear()
        yield place
    code._digest.cache_clear()


@pytest.fixture(scope="module")
def before(source: Path, params: Params) -> dict[str, Key]:
    """The keys of the code as it is."""
    return all_keys(params)


def all_keys(params: Params) -> dict[str, Key]:
    return {name: make(params, "digest") for name, (_, make) in WORK.items()}


def changed(source: Path, params: Params, before: dict[str, Key], file: str) -> set[str]:
    """The work whose key a further line in a file changes."""
    place = source / "danceflow" / file
    text = place.read_bytes()
    try:
        place.write_bytes(text + b"\n# One line more.\n")
        code._digest.cache_clear()
        return {name for name, key in all_keys(params).items() if key != before[name]}
    finally:
        place.write_bytes(text)
        code._digest.cache_clear()


@functools.cache
def reached(name: str) -> tuple[str, ...]:
    """The files behind a piece of work."""
    return reached_files(SOURCE, keys._MODULES[name.partition(",")[0]], *code.EVERY_STAGE)


@pytest.mark.parametrize("file", FILES)
def test_a_line_of_code_that_a_piece_of_work_reaches_gives_another_key(
    source: Path, params: Params, before: dict[str, Key], file: str
) -> None:
    assert changed(source, params, before, file) == {
        name for name in WORK if f"danceflow/{file}" in reached(name)
    }


@pytest.mark.parametrize(
    ("file", "kinds"),
    [("report/page/templates/report.css", ()), ("fields/objective.py", ("distill",))],
)
def test_the_loss_trains_anew_and_a_style_sheet_does_not(
    source: Path, params: Params, before: dict[str, Key], file: str, kinds: tuple[str, ...]
) -> None:
    """What the test above says of every file, said of the two that were seen."""
    expected = {name for name in WORK if name.partition(",")[0] in kinds}
    assert changed(source, params, before, file) == expected


@pytest.mark.parametrize("name", WORK)
def test_other_input_gives_another_key(params: Params, name: str) -> None:
    _, make = WORK[name]
    assert make(params, "one") == make(params, "one")
    assert make(params, "one") != make(params, "other")


@pytest.mark.parametrize("name", WORK)
def test_the_code_of_work_is_a_part_of_its_stage_s(name: str) -> None:
    stage, _ = WORK[name]
    module = keys._MODULES[name.partition(",")[0]]
    own = reached_files(SOURCE, module, *code.EVERY_STAGE)
    assert set(own) <= set(reached_files(SOURCE, *STAGES[stage].modules))
    assert len(own) > 3


@pytest.mark.parametrize("name", WORK)
def test_a_name_is_known_again_and_holds_all_of_its_key(params: Params, name: str) -> None:
    key = WORK[name][1](params, "digest")
    folder = key.folder(Paths(Path("/checkout")))
    assert keys.is_work(folder.name)
    assert folder.name == f"{key.name}-{key.digest}"
    assert folder == Paths(Path("/checkout")).work(folder.name)


@pytest.mark.parametrize("name", ["judge-answers", "judge-questions-t2i", "any", "teachers"])
def test_what_no_key_names_is_no_work(name: str) -> None:
    assert not keys.is_work(name)


CHANGES: tuple[tuple[str, object, set[str]], ...] = (
    ("run.seed", 77, {"cache", "distill", "text-encoder", "teacher"}),
    ("family.shift", 7.5, {"cache", "distill", "text-encoder", "teacher"}),
    ("data.seed", 77, {"prepare"}),
    ("cache.num_steps", 77, {"cache"}),
    ("distill.seed", 77, {"distill"}),
    ("distill.learning_rate", 0.5, {"distill"}),
    ("evaluate.num_steps", 77, set()),
    ("gate.max_regression", 0.5, set()),
    ("tracking.experiment", "other", set()),
)


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_a_parameter_is_in_the_keys_of_what_it_decides(recipe: Path) -> None:
    """``evaluate``'s own are in an answer's key by the content that its stage gives."""
    data = read_yaml(recipe)

    def made(params: Params) -> dict[str, Key]:
        first, teacher = next(iter(params.capabilities)), next(iter(params.teachers))
        return {
            "prepare": keys.prepared(params.data, "r"),
            "cache": keys.cached(params, first, params.capabilities[first], "r", "v", "t"),
            "distill": keys.trained(params, "t", {}, {}),
            "text-encoder": keys.text_encoder(params, []),
            "teacher": keys.teacher(params, teacher, "f", None, None),
        }

    one = made(parse_params(data, recipe.name))
    for name, value, kinds in CHANGES:
        other = made(parse_params(override(data, {name: value}), recipe.name))
        assert {kind for kind in one if one[kind] != other[kind]} == kinds, name


def test_a_weight_of_a_capability_is_no_matter_of_its_cache() -> None:
    one = small_params()
    data = small_data(("t2i", "local_edit"))
    data["capabilities"]["t2i"]["weight"] = 3.0
    other = parse_params(data, "test")
    assert WORK["cache"][1](one, "d") == WORK["cache"][1](other, "d")
    assert WORK["distill, rows"][1](one, "d") != WORK["distill, rows"][1](other, "d")
