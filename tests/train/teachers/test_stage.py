"""Stage ``teachers``: what it writes, that it goes on where it stopped, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shaped_rows import shaped_data, write_rows
from tiny_project import small_data

from danceflow.data.buckets import read_bucket
from danceflow.errors import ConfigError, WeightsError
from danceflow.models.package import read_manifest, write_manifest
from danceflow.models.teachers import Teachers
from danceflow.ops import determinism, keys
from danceflow.params.read import parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.train.teachers import scores as scoring
from danceflow.train.teachers import stage as module
from danceflow.train.teachers import training
from danceflow.worlds import prepare, scenes

CAPABILITIES = ("t2i", "local_edit")
OWN = {"1", "1.5", "2", "3"}  # guidance scales at which a teacher's own capability is scored


def tiny(**changes: Any) -> Params:
    """The teachers of two capabilities, the second one fine-tuned from the first."""
    data = small_data(CAPABILITIES)
    data["family"]["text_encoder"] |= {"num_updates": 2, "batch_size": 8}
    for teacher in data["teachers"].values():
        teacher |= {"num_samples": 24, "num_updates": 3, "batch_size": 4, "warmup": 1}
    data["teachers"]["local"] |= {"init": "base", **changes}
    return parse_params(data, "test")


@pytest.fixture(scope="module", autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    threads = torch.get_num_threads()
    determinism.prepare_torch(tiny().run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_NUM_READ", 200)
        patch.setattr(scenes, "_NUM_CHECKED", 40)
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project with prepared data and no teachers."""
    paths = Paths(tmp_path_factory.mktemp("data"))
    prepare.run(tiny(), paths)
    return paths


@pytest.fixture(scope="module")
def made(data: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The same with teachers; not to be changed."""
    paths = Paths(tmp_path_factory.mktemp("made") / "project")
    shutil.copytree(data.root, paths.root)
    module.run(tiny(), paths)
    return paths


@pytest.fixture
def project(data: Paths, tmp_path: Path) -> Paths:
    shutil.copytree(data.root, tmp_path / "project")
    return Paths(tmp_path / "project")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is trained: the text encoder, and teachers by the name of their work folder."""
    noted: list[str] = []
    finetune, pretrain = training.finetune, training.pretrain_text_encoder

    def noting(family, backbone, batches, config, *, work: Path, **options: Any) -> None:
        noted.append(work.name.split("-")[1])
        finetune(family, backbone, batches, config, work=work, **options)

    def reading(*arguments: Any, **options: Any) -> float:
        noted.append("text encoder")
        return pretrain(*arguments, **options)

    monkeypatch.setattr(training, "finetune", noting)
    monkeypatch.setattr(training, "pretrain_text_encoder", reading)
    return noted


def without_clocks(report: Any) -> Any:
    for teacher in report["teachers"].values():
        teacher["curve"] = [[step, loss] for step, loss, _ in teacher["curve"]]
    return {name: value for name, value in report.items() if name != "seconds"}


def test_the_teachers_are_there_with_a_manifest(made: Paths) -> None:
    params = tiny()
    manifest = read_manifest(made.teachers)  # which checks every file's digest
    assert (manifest["family"], manifest["teachers"]) == (params.family.name, ["base", "local"])
    files = {p.relative_to(made.teachers).as_posix() for p in made.teachers.rglob("*.*")}
    assert files - {"manifest.json"} == manifest["files"].keys()
    loaded = Teachers(made.teachers, params.family.name, list(params.teachers), "cpu")
    assert loaded.family.unknown_words("a red circle left of a zeppelin") == ["zeppelin"]
    one, other = (backbone.state_dict() for backbone in loaded.backbones.values())
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_teacher_is_scored_on_every_capability(made: Paths) -> None:
    params = tiny()
    report = json.loads(made.teachers_report.read_text())
    assert (report["split"], report["num_steps"]) == ("validation", params.evaluate.num_steps)
    assert report["seconds"] > 0
    assert report["teachers"].keys() == params.teachers.keys()
    for name, teacher in report["teachers"].items():
        assert teacher["num_parameters"] > 0
        assert teacher["num_updates"] == 3
        assert [step for step, _, _ in teacher["curve"]] == [3]
        assert teacher["scores"].keys() == params.capabilities.keys()
        for capability, scores in teacher["scores"].items():
            config = params.capabilities[capability]
            is_own = config.teacher == name
            assert scores.keys() == (OWN if is_own else {f"{config.guidance:g}"})
            for score in scores.values():
                num_categories = len(score["categories"])
                assert score["num_samples"] == params.evaluate.num_samples * num_categories
                assert score["overall"] == pytest.approx(
                    sum(score["categories"].values()) / num_categories
                )


def test_a_grid_shows_every_teacher_on_every_capability(made: Paths) -> None:
    sizes = {}
    for path in made.teachers_images.iterdir():
        with Image.open(path) as grid:
            assert grid.format == "PNG"
            sizes[path.name] = grid.size
    assert sizes.keys() == {"t2i.png", "local_edit.png"}
    assert sizes["local_edit.png"][0] > sizes["t2i.png"][0]  # it has the sources as well


def test_a_stage_that_was_interrupted_goes_on(
    made: Paths, project: Paths, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = training.finetune

    def stopping(family, backbone, batches, config, **options: Any) -> None:
        if options["work"].name.startswith("teacher-local"):
            raise KeyboardInterrupt
        noting(family, backbone, batches, config, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "finetune", stopping)
        with pytest.raises(KeyboardInterrupt):
            module.run(tiny(), project)
    assert trained == ["text encoder", "base"]
    assert not project.teachers.exists()
    assert not project.teachers_report.exists()

    trained.clear()
    module.run(tiny(), project)
    assert trained == ["local"]
    assert read_manifest(project.teachers) == read_manifest(made.teachers)
    reports = [json.loads(paths.teachers_report.read_text()) for paths in (project, made)]
    assert without_clocks(reports[0]) == without_clocks(reports[1])
    assert list(project.root.rglob("*.partial")) == []


def test_a_changed_teacher_is_trained_alone_and_starts_where_it_says(
    made: Paths, tmp_path: Path, trained: list[str]
) -> None:
    shutil.copytree(made.root, tmp_path / "project")
    paths = Paths(tmp_path / "project")
    module.run(tiny(learning_rate=1e-12), paths)
    assert trained == ["local"]
    loaded = Teachers(paths.teachers, "sd3", ["base", "local"], "cpu")
    base, local = (backbone.state_dict() for backbone in loaded.backbones.values())
    assert all(torch.equal(base[name], local[name]) for name in base)


def with_another(made: Paths, place: Path, **meta: Any) -> Paths:
    """The made project, whose teachers hold an adapter on ``base`` that a recipe has added."""
    shutil.copytree(made.root, place)
    paths = Paths(place)
    (paths.teachers / "shaded").mkdir()
    (paths.teachers / "shaded" / "pytorch_lora_weights.safetensors").write_bytes(b"an adapter")
    manifest = read_manifest(paths.teachers)
    names = {"family": manifest["family"], "teachers": [*manifest["teachers"], "shaded"]}
    write_manifest(paths.teachers, names | {"base": "base"} | meta)
    return paths


def test_a_teacher_that_the_parameters_do_not_name_stays(
    made: Paths, tmp_path: Path, trained: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    paths = with_another(made, tmp_path / "project")
    before = read_manifest(paths.teachers)
    module.run(tiny(), paths)
    assert trained == []
    assert read_manifest(paths.teachers) == before
    assert "kept: shaded (`danceflow teachers --recipe` scores them)" in caplog.text
    assert "learned beside another" not in caplog.text
    assert json.loads(paths.teachers_report.read_text())["teachers"].keys() == {"base", "local"}

    data = small_data(CAPABILITIES)
    data["family"]["text_encoder"] |= {"num_updates": 2, "batch_size": 8}
    for teacher in data["teachers"].values():
        teacher |= {"num_samples": 24, "num_updates": 2, "batch_size": 4, "warmup": 1}
    module.run(parse_params(data, "test"), paths)
    after = read_manifest(paths.teachers)
    assert (after["teachers"], after["base"]) == (["base", "local", "shaded"], "base")
    place = "shaded/pytorch_lora_weights.safetensors"
    assert after["files"][place] == before["files"][place]
    assert "shaded learned beside another base/diffusion_pytorch_model" in caplog.text


def test_an_adapter_stands_on_the_teacher_that_it_learned_on(made: Paths, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "project")
    paths = Paths(tmp_path / "project")
    params = tiny()
    for name, base in (("first", "base"), ("second", "local")):
        changes = {"adapter_rank": 2, "init": base, "num_updates": 1}
        adapter = params.teachers["local"].model_copy(update=changes)
        more = {**params.teachers, name: adapter}
        assert module.add(params.model_copy(update={"teachers": more}), paths) == [name]
    manifest = read_manifest(paths.teachers)
    assert (manifest["base"], manifest["bases"]) == ("base", {"second": "local"})
    for name, base in (("first", "base"), ("second", "local")):
        found = Teachers(paths.teachers, "sd3", ["base", "local", name], "cpu")
        assert found.base == base
        assert found.backbones[name] is found.shared is found.backbones[base]
    assert Teachers(paths.teachers, "sd3", ["local"], "cpu").base == "base"
    with pytest.raises(WeightsError, match="one network, here first on base, second on local"):
        Teachers(paths.teachers, "sd3", ["first", "second"], "cpu")


def test_a_teacher_is_added_on_rows_that_were_brought_and_changed(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    write_rows(paths.raw / "pets")
    data = shaped_data(("1:1",))
    data["family"]["text_encoder"] |= {"num_updates": 1, "batch_size": 4}
    for teacher in data["teachers"].values():
        teacher |= {"num_samples": 8, "num_updates": 1, "batch_size": 4, "warmup": 0}
        teacher["category_weights"] = {}
    params = parse_params(data, "test")
    prepare.run(params, paths)
    module.run(params, paths)
    table = paths.raw / "pets" / "pets.csv"
    for name, prompt in (("first", "two red squares"), ("second", "two green squares")):
        table.write_text(table.read_text().replace("two red squares", prompt))
        more = {**params.teachers, name: params.teachers["base"]}
        assert module.add(params.model_copy(update={"teachers": more}), paths) == [name]
        params = params.model_copy(update={"teachers": more})
        there = Paths(keys.teachers_data(params).folder(paths))
        assert prompt in set(read_bucket(there.bucket("t2i"), "train")["prompt"])


def test_a_teacher_that_stays_is_whole(made: Paths, tmp_path: Path, trained: list[str]) -> None:
    paths = with_another(made, tmp_path / "project")
    weights = paths.teacher("shaded") / "pytorch_lora_weights.safetensors"
    weights.write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"is damaged, and nothing trains it; restore it"):
        module.run(tiny(), paths)
    other = with_another(made, tmp_path / "other", family="zimage")
    module.run(tiny(), other)
    assert read_manifest(other.teachers) == read_manifest(made.teachers)
    assert trained == []


def test_teachers_come_after_those_they_start_from(project: Paths, trained: list[str]) -> None:
    params = tiny()
    upside_down = dict(reversed(params.teachers.items()))
    with pytest.raises(ConfigError, match=r"teachers.local.init: 'base' is neither 'scratch' nor"):
        module.run(params.model_copy(update={"teachers": upside_down}), project)
    assert trained == ["text encoder"]
    assert not project.teachers.exists()


def test_a_text_encoder_that_was_cut_short_is_named(
    made: Paths, tmp_path: Path, trained: list[str]
) -> None:
    shutil.copytree(made.root, tmp_path / "project")
    paths = Paths(tmp_path / "project")
    shutil.rmtree(paths.teachers)
    (folder,) = paths.work("any").parent.glob("text-encoder-*")
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="text_encoder"):
        module.run(tiny(), paths)
    assert trained == []
    assert not paths.teachers.exists()


def test_teachers_that_were_brought_along_are_not_trained(made: Paths) -> None:
    data = small_data(CAPABILITIES)
    data["teachers"]["base"]["init"] = "brought"
    data["teachers"]["local"]["init"] = "base"
    params = parse_params(data, "test")
    before = (made.teachers / "manifest.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"teachers\.base: was brought along .* cannot be trained"
    ):
        module.run(params, made)
    assert (made.teachers / "manifest.json").read_bytes() == before
    data["teachers"]["other"] = data["teachers"]["base"]
    with pytest.raises(ConfigError, match=r"teachers\.other: is not in .*bring-teachers puts it"):
        module.add(parse_params(data, "test"), made)
    data["family"]["name"] = "zimage"
    data["teachers"] = {
        name: data["teachers"][name] | {"init": "scratch"} for name in data["teachers"]
    }
    with pytest.raises(WeightsError, match="a zimage model is not trained from scratch"):
        module.run(parse_params(data, "test"), made)


class StoppedError(Exception):
    """Ends a stage where the test has seen enough."""


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("at", ["text encoder", "scratch", "init", "adapter", "scores"])
def test_everything_computes_where_the_run_says(
    made: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, at: str
) -> None:
    """``meta`` is a device that every machine has; what it cannot do comes after what is seen."""
    ignored = shutil.ignore_patterns(*(["text-encoder-*"] if at == "text encoder" else []))
    shutil.copytree(made.root, tmp_path / "project", ignore=ignored)
    paths = Paths(tmp_path / "project")
    rank = 2 if at == "adapter" else None
    params = tiny(adapter_rank=rank, learning_rate=0.5)
    params = params.model_copy(update={"run": params.run.model_copy(update={"device": device})})
    seen: set[str] = set()

    def see(*modules: Any) -> None:
        seen.update(p.device.type for m in modules for p in m.parameters())

    def reading(tokenizer: Any, encoder: Any, *more: Any, **options: Any) -> float:
        see(encoder)
        raise StoppedError

    def training_one(family: Any, backbone: Any, *more: Any, **options: Any) -> None:
        see(backbone, *(encoder for _, encoder in family.prompts.clips))
        raise StoppedError

    def loading(folder: Path, name: str, teachers: Any, memory: Any) -> Teachers:
        seen.add(memory.device)
        return Teachers(folder, name, teachers, "cpu")

    def batch(dataset: Any, world: Any, family: Any, count: int, seed: int, device: str) -> None:
        seen.add(device)
        raise StoppedError

    with pytest.raises(StoppedError):
        if at == "text encoder":
            monkeypatch.setattr(training, "pretrain_text_encoder", reading)
            training.text_encoder(params, paths)
        elif at == "scores":
            monkeypatch.setattr(scoring, "Teachers", loading)
            monkeypatch.setattr(scoring, "quick_batch", batch)
            empty: dict[str, Any] = {"teachers": {}}
            scoring.score_teachers(params, paths, paths, empty)
        else:
            monkeypatch.setattr(training, "finetune", training_one)
            (frozen,) = paths.work("any").parent.glob("text-encoder-*")
            family = module.open_family(params.family.name, frozen).to(device)
            (base,) = paths.work("any").parent.glob("teacher-base-[0-9a-f]*")
            name = "base" if at == "scratch" else "local"
            training.train_teacher(params, paths, paths, family, name, {"base": base}, "frozen")
    assert seen == {device}


def test_the_stage_puts_the_frozen_parts_there_first(
    made: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to train a teacher open the family and hand it on."""
    params = tiny()
    params = params.model_copy(update={"run": params.run.model_copy(update={"device": "meta"})})
    shutil.copytree(made.root, tmp_path / "project")
    paths = Paths(tmp_path / "project")
    (frozen,) = paths.work("any").parent.glob("text-encoder-*")
    monkeypatch.setattr(module, "text_encoder", lambda params, paths: frozen)

    def training_one(params: Params, paths: Paths, data: Paths, family: Any, *more: Any) -> Path:
        devices = {p.device.type for _, part in family.prompts.clips for p in part.parameters()}
        assert devices == {"meta"}
        raise StoppedError

    monkeypatch.setattr(module, "train_teacher", training_one)
    with pytest.raises(StoppedError):
        module.run(params, paths)
    more = {**params.teachers, "third": params.teachers["local"]}
    with pytest.raises(StoppedError):
        module.add(params.model_copy(update={"teachers": more}), paths)
