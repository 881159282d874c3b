"""What decides a result decides its key, and nothing else does."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tiny_project import small_data, small_params

from danceflow.config import dump_yaml, load_params, override, read_yaml
from danceflow.ops import code, keys
from danceflow.ops.code import SOURCE, reached_files
from danceflow.ops.keys import Key
from danceflow.paths import Paths
from danceflow.schema import Params
from danceflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]

# Every piece of work: its stage, and its key of a checkout's parameters and given digests.
Maker = Callable[[Params, str], Key]
WORK: Mapping[str, tuple[str, Maker]] = {
    "prepare": ("prepare", lambda p, d: keys.prepared(p.data, d)),
    "cache": ("cache", lambda p, d: keys.cached(p, "t2i", p.capabilities["t2i"], d, "t")),
    "cache, teachers": (
        "cache",
        lambda p, d: keys.cached(p, "t2i", p.capabilities["t2i"], "r", d),
    ),
    "distill, teachers": ("distill", lambda p, d: keys.trained(p, d, {"t2i": "c"}, {"t2i": "v"})),
    "distill, caches": ("distill", lambda p, d: keys.trained(p, "t", {"t2i": d}, {"t2i": "v"})),
    "distill, rows": ("distill", lambda p, d: keys.trained(p, "t", {"t2i": "c"}, {"t2i": d})),
    "evaluation": ("evaluate", lambda p, d: keys.answered({"rows": d})),
    "text-encoder": ("teachers", lambda p, d: keys.text_encoder(p, [d])),
    "teacher": ("teachers", lambda p, d: keys.teacher(p, "base", "f", None, d)),
    "teacher, frozen": ("teachers", lambda p, d: keys.teacher(p, "base", d, None, None)),
    "teacher, init": ("teachers", lambda p, d: keys.teacher(p, "base", "f", d, None)),
}
# One file of every package, each the inmost one of its kind.
FILES = (
    "capability.py",
    "columns.py",
    "config.py",
    "cli.py",
    "data/cache.py",
    "data/condition_cache.py",
    "data/ingest.py",
    "data/scene_stream.py",
    "digits/score.py",
    "evaluate/evaluator.py",
    "evaluate/page.py",
    "evaluate/quick.py",
    "evaluate/questions.py",
    "evaluate/templates/report.css",
    "fields/objective.py",
    "fields/rollout.py",
    "fields/seeds.py",
    "method.py",
    "models/bring.py",
    "models/sd3.py",
    "ops/determinism.py",
    "ops/files.py",
    "ops/keys.py",
    "ops/tracking/store.py",
    "plan/cost.py",
    "registry/register.py",
    "scenes/render.py",
    "train/distill.py",
    "train/finetune.py",
    "train/teacher_scores.py",
    "train/text_encoder.py",
)


@pytest.fixture(scope="module")
def params() -> Params:
    return small_params()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package in the place of the running one, as far as keys know."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "danceflow", tmp_path / "danceflow", ignore=ignored)
    monkeypatch.setattr(code, "SOURCE", tmp_path)
    yield tmp_path
    code._digest.cache_clear()


def all_keys(params: Params) -> dict[str, Key]:
    code._digest.cache_clear()
    return {name: make(params, "digest") for name, (_, make) in WORK.items()}


@pytest.mark.parametrize("file", FILES)
def test_a_line_of_code_that_a_piece_of_work_reaches_gives_another_key(
    source: Path, params: Params, file: str
) -> None:
    before = all_keys(params)
    place = source / "danceflow" / file
    place.write_text(place.read_text() + "\n# One line more.\n")
    after = all_keys(params)
    found = {name for name in WORK if after[name] != before[name]}
    assert found == {
        name
        for name in WORK
        if f"danceflow/{file}"
        in reached_files(SOURCE, keys._MODULES[name.partition(",")[0]], *code.EVERY_STAGE)
    }


def test_the_loss_trains_anew_and_a_style_sheet_does_not(source: Path, params: Params) -> None:
    """What the parametrised test says for every file, said for the two that were seen."""
    before = all_keys(params)
    for file, expected in {
        "evaluate/templates/report.css": set(),
        "fields/objective.py": {name for name in WORK if name.startswith("distill")},
    }.items():
        place = source / "danceflow" / file
        place.write_text(place.read_text() + "\n# One line more.\n")
        assert {name for name, key in all_keys(params).items() if key != before[name]} == expected


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


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("run.seed", 77, {"cache", "distill", "text-encoder", "teacher"}),
        ("family.shift", 7.5, {"cache", "distill", "text-encoder", "teacher"}),
        ("data.seed", 77, {"prepare"}),
        ("cache.num_steps", 77, {"cache"}),
        ("distill.seed", 77, {"distill"}),
        ("distill.learning_rate", 0.5, {"distill"}),
        ("evaluate.num_steps", 77, set()),
        ("gate.max_regression", 0.5, set()),
        ("tracking.experiment", "other", set()),
    ],
)
def test_a_parameter_is_in_the_keys_of_what_it_decides(
    recipe: Path, tmp_path: Path, name: str, value: object, kinds: set[str]
) -> None:
    """``evaluate``'s own are in an answer's key by the content that its stage gives."""
    file = tmp_path / "params.yaml"
    file.write_text(dump_yaml(override(read_yaml(recipe), {name: value})))
    before, after = load_params(recipe), load_params(file)
    first, teacher = next(iter(before.capabilities)), next(iter(before.teachers))

    def made(params: Params) -> dict[str, Key]:
        return {
            "prepare": keys.prepared(params.data, "r"),
            "cache": keys.cached(params, first, params.capabilities[first], "r", "t"),
            "distill": keys.trained(params, "t", {}, {}),
            "text-encoder": keys.text_encoder(params, []),
            "teacher": keys.teacher(params, teacher, "f", None, None),
        }

    one, other = made(before), made(after)
    assert {kind for kind in one if one[kind] != other[kind]} == kinds


def test_a_weight_of_a_capability_is_no_matter_of_its_cache() -> None:
    one = small_params()
    data = small_data(("t2i", "local_edit"))
    data["capabilities"]["t2i"]["weight"] = 3.0
    from danceflow.config import parse_params

    other = parse_params(data, "test")
    assert WORK["cache"][1](one, "d") == WORK["cache"][1](other, "d")
    assert WORK["distill, rows"][1](one, "d") != WORK["distill, rows"][1](other, "d")
