"""What is cached is what would be computed afresh, and an interrupted stage goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import SIZES, small_data, write_project

from danceflow.data import cache, write_shards
from danceflow.data.buckets import encode_png, images_of, read_bucket, write_bucket
from danceflow.data.cached_rows import ConditionCache
from danceflow.errors import DataError, WeightsError
from danceflow.fields import Condition, normal, sample, seed_for
from danceflow.models.package import write_manifest
from danceflow.models.teachers import Teachers
from danceflow.ops import keys
from danceflow.paths import Paths
from danceflow.worlds import prepare

CAPABILITIES = ("t2i", "local_edit")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A project with prepared data and the caches of both capabilities."""
    paths = Paths(tmp_path_factory.mktemp("made"))
    params = write_project(paths.root, small_data(CAPABILITIES))
    prepare.run(params, paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_shards, "ROWS_PER_SHARD", 5)
        for capability in CAPABILITIES:
            cache.run(params, paths, capability)
    return params, paths


@pytest.fixture
def project(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of it that a test may spoil, without the caches."""
    monkeypatch.setattr(write_shards, "ROWS_PER_SHARD", 5)
    params, paths = made
    ignored = shutil.ignore_patterns("cache", ".danceflow")
    shutil.copytree(paths.root, tmp_path / "project", ignore=ignored)
    return params, Paths(tmp_path / "project")


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_conditions_are_those_computed_afresh(made, capability: str) -> None:
    _, paths = made
    cached = ConditionCache(paths.cache(capability))
    dataset = read_bucket(paths.bucket(capability), "train")
    family = Teachers(paths.teachers, "sd3", [], "cpu").family
    assert len(cached) == len(dataset) == SIZES["num_train"]
    rows = [7, 0, 11, 7]
    (group,) = cached.groups
    found = group.condition(torch.tensor(rows)).tensors
    source = None
    if capability == "local_edit":
        source = family.encode(images_of(dataset, rows, "source"))
    fresh = family.condition([dataset[row]["prompt"] for row in rows], source).tensors
    assert found.keys() == fresh.keys()
    for name, value in fresh.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    target = family.encode(images_of(dataset, rows, "target"))
    assert torch.equal(group.clean("data", torch.tensor(rows)), target)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_teacher_samples_follow_from_their_seeds(made, capability: str) -> None:
    params, paths = made
    config = params.capabilities[capability]
    whole = ConditionCache(paths.cache(capability))
    (cached,), (entry,) = whole.groups, whole.index["sizes"]
    shards = [load_file(paths.cache(capability) / name) for name in entry["teacher_samples"]]
    seeds = torch.cat([shard["seed"] for shard in shards])
    assert seeds.tolist() == [
        seed_for(params.run.seed, f"cache/{capability}", 0, row)
        for row in range(params.cache.num_samples)
    ]
    teachers = Teachers(paths.teachers, "sd3", [config.teacher], "cpu")
    again = sample(
        teachers.field(config.teacher, config.guidance),
        normal(teachers.family.latent_shape, seeds),
        cached.condition(torch.arange(len(seeds))),
        teachers.family.grid(params.cache.num_steps),
    )
    found = cached.clean("teacher", torch.arange(len(seeds)))
    torch.testing.assert_close(found, again, rtol=0, atol=1e-4)
    assert cached.num_rows("teacher") == params.cache.num_samples
    assert cached.num_rows("data") == cached.num_rows(None) == len(cached)
    with pytest.raises(WeightsError, match=r"only 6 rows have a teacher sample; raise cache\."):
        cached.clean("teacher", torch.tensor([6]))


def test_a_capability_without_sources_has_blank_ones(made) -> None:
    _, paths = made
    (blank,) = ConditionCache(paths.cache("t2i")).groups
    assert blank.sources == ()
    condition = blank.condition(torch.tensor([0, 3]))
    assert isinstance(condition, Condition)
    assert not condition.tensors["source"].any()
    assert ConditionCache(paths.cache("local_edit")).groups[0].sources != ()


def test_an_interrupted_stage_goes_on_from_its_shards(
    made, project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, paths = project
    save, saved = write_shards._save, []

    def interrupted(path: Path, tensors) -> None:
        if path.name == "samples-32x32-00001.safetensors":
            raise KeyboardInterrupt
        save(path, tensors)

    def noted(path: Path, tensors) -> None:
        saved.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(write_shards, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.run(params, paths, "local_edit")
    assert not paths.cache("local_edit").exists()
    monkeypatch.setattr(write_shards, "_save", noted)
    cache.run(params, paths, "local_edit")
    assert saved == ["samples-32x32-00001.safetensors"]
    assert content(paths.cache("local_edit")) == content(made[1].cache("local_edit"))


def test_other_parameters_and_other_data_begin_anew(made, project) -> None:
    params, paths = project
    before = json.loads((made[1].cache("t2i") / "index.json").read_text())
    cache.run(params, paths, "t2i")
    assert json.loads((paths.cache("t2i") / "index.json").read_text()) == before
    changed = params.model_copy(update={"cache": params.cache.model_copy(update={"num_steps": 3})})
    cache.run(changed, paths, "t2i")
    other_steps = json.loads((paths.cache("t2i") / "index.json").read_text())
    data = params.model_copy(update={"data": params.data.model_copy(update={"seed": 9})})
    prepare.run(data, paths)
    cache.run(params, paths, "t2i")
    other_data = json.loads((paths.cache("t2i") / "index.json").read_text())
    found = (before, other_steps, other_data)
    assert len({json.dumps(index["files"], sort_keys=True) for index in found}) == 3


def test_code_that_changed_begins_anew_and_the_index_goes_by_what_came_of_it(
    made, project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment must not train anew, and nothing that other code wrote is taken over."""
    params, paths = project
    cache.run(params, paths, "t2i")
    before = content(paths.cache("t2i"))
    monkeypatch.setattr(keys, "code_digest", lambda *modules: "other code")
    written = []
    save = write_shards._save

    def noted(path: Path, tensors) -> None:
        written.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(write_shards, "_save", noted)
    cache.run(params, paths, "t2i")
    assert {*written, "index.json"} == before.keys()
    assert content(paths.cache("t2i")) == before


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are written from now on."""
    save, names = write_shards._save, []

    def noted(path: Path, tensors) -> None:
        names.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(write_shards, "_save", noted)
    return names


def spoil(shard: Path, damage: str) -> None:
    if damage == "missing":
        shard.unlink()
        return
    with shard.open("rb+") as file:
        if damage == "truncated":
            file.truncate(shard.stat().st_size // 2)
        else:
            file.seek(-3, 2)
            last = file.read(1)[0]
            file.seek(-3, 2)
            file.write(bytes([last ^ 1]))


@pytest.mark.parametrize("name", ["prompts-00000", "latents-32x32-00001", "samples-32x32-00000"])
@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "missing"])
def test_a_damaged_shard_is_named_and_made_again_alone(
    project, written: list[str], caplog, name: str, damage: str
) -> None:
    params, paths = project
    cache.run(params, paths, "t2i")
    folder = paths.cache("t2i")
    before, shard = content(folder), folder / f"{name}.safetensors"
    spoil(shard, damage)
    with pytest.raises(DataError, match=f"{shard}: this shard .*: dvc repro cache@t2i"):
        ConditionCache(folder)
    written.clear()
    cache.run(params, paths, "t2i")
    # What is missing here is still in the work folder, which shares what is damaged.
    assert written == ([] if damage == "missing" else [shard.name])
    assert ("this shard is damaged" in caplog.text) == (damage != "missing")
    assert content(folder) == before
    spoil(_work(paths) / shard.name, damage)
    written.clear()
    cache.run(params, paths, "t2i")
    assert written == [shard.name]
    assert content(folder) == before


def _work(paths: Paths) -> Path:
    (folder,) = paths.work("x").parent.glob("cache-t2i-*/")
    return folder


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from danceflow.data import cache, write_shards
from danceflow.params.read import load_params
from danceflow.paths import Paths

write_shards.ROWS_PER_SHARD = 1
paths, replace = Paths(Path({root!r})), Path.replace

def killed(partial, path):
    global left
    left -= path.suffix == ".safetensors"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(partial, path)

Path.replace = killed
for left in (3, 10):
    process = os.fork()
    if process == 0:
        cache.run(load_params(paths.params), paths, "local_edit")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
"""


def test_a_killed_stage_keeps_every_shard_that_was_finished(
    made, project, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is killed in the prompts' third shard, the next one in the second of samples."""
    params, paths = project
    monkeypatch.setattr(write_shards, "ROWS_PER_SHARD", 1)
    code = KILLED.format(path=sys.path, root=str(paths.root))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not paths.cache("local_edit").exists()
    assert list(paths.root.rglob("*.partial")) != []
    cache.run(params, paths, "local_edit")
    assert written == ["samples-32x32-00001.safetensors"]
    one, other = (ConditionCache(p.cache("local_edit")).groups[0] for p in (paths, made[1]))
    rows = torch.arange(len(other))
    assert torch.equal(one.clean("data", rows), other.clean("data", rows))
    for name, value in other.condition(rows).tensors.items():
        assert torch.equal(one.condition(rows).tensors[name], value)
    assert list(paths.root.rglob("*.partial")) == []


def test_what_is_stored_in_bfloat16_is_half_and_is_read_as_float32(made, project) -> None:
    params, paths = project
    stored = params.cache.model_copy(update={"dtype": "bfloat16"})
    cache.run(params.model_copy(update={"cache": stored}), paths, "local_edit")
    half, whole = (ConditionCache(p.cache("local_edit")).groups[0] for p in (paths, made[1]))
    rows = torch.arange(5)
    for name, value in whole.condition(rows).tensors.items():
        found = half.condition(rows).tensors[name]
        assert found.dtype == value.dtype == torch.float32
        assert torch.equal(found, value.bfloat16().float())
    for kind in ("data", "teacher"):
        torch.testing.assert_close(
            half.clean(kind, rows), whole.clean(kind, rows), rtol=2**-7, atol=2**-5
        )
    sizes = [
        sum(file.stat().st_size for file in p.cache("local_edit").glob("latents*"))
        for p in (paths, made[1])
    ]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_a_cache_is_read_through_every_kind_of_link_and_is_left_alone(
    made, tmp_path: Path, kind: str
) -> None:
    """DVC puts an out into the workspace as any of these, read-only but for a copy."""
    kept, folder = tmp_path / "kept", tmp_path / "local_edit"
    shutil.copytree(made[1].cache("local_edit"), kept)
    folder.mkdir()
    for file in kept.iterdir():
        file.chmod(0o444)
        if kind == "copy":
            shutil.copyfile(file, folder / file.name)
        elif kind == "hardlink":
            (folder / file.name).hardlink_to(file)
        else:
            (folder / file.name).symlink_to(file)
    before, rows = content(kept), torch.tensor([7, 0, 11, 7])
    found, original = (ConditionCache(f).groups[0] for f in (folder, made[1].cache("local_edit")))
    condition = found.condition(rows)
    for name, value in original.condition(rows).tensors.items():
        assert torch.equal(condition.tensors[name], value)
        condition.tensors[name].zero_()  # a copy of its own
    assert content(kept) == before
    assert all(file.stat().st_mode & 0o222 == 0 for file in kept.iterdir())


@pytest.mark.parametrize("text", [None, "{", ""])
def test_an_unreadable_index_is_named(project, text: str | None) -> None:
    _, paths = project
    index = paths.cache("t2i") / "index.json"
    if text is not None:
        index.parent.mkdir(parents=True)
        index.write_text(text)
    with pytest.raises(DataError, match=f"{index}: cannot be read"):
        ConditionCache(paths.cache("t2i"))


def test_a_row_without_the_source_it_needs_is_told(project) -> None:
    params, paths = project
    dataset = read_bucket(paths.bucket("local_edit"), "train")
    rows = [dict(row) for row in dataset]
    rows[3]["source"] = None
    shutil.rmtree(paths.bucket("local_edit") / "train")
    write_bucket(paths.bucket("local_edit") / "train", rows)
    with pytest.raises(DataError, match="capability 'local_edit' needs a source in every row"):
        cache.run(params, paths, "local_edit")
    assert not paths.cache("local_edit").exists()


def test_words_that_the_encoder_does_not_know_are_told(project, caplog) -> None:
    params, paths = project
    rows = [dict(row) for row in read_bucket(paths.bucket("t2i"), "train")]
    rows[5] |= {"prompt": "a chartreuse zeppelin", "target": encode_png(torch.zeros(3, 32, 32))}
    shutil.rmtree(paths.bucket("t2i") / "train")
    write_bucket(paths.bucket("t2i") / "train", rows)
    cache.run(params, paths, "t2i")
    assert "the text encoder does not know: chartreuse, zeppelin" in caplog.text
    assert len(ConditionCache(paths.cache("t2i"))) == len(rows)


LONG = "a red circle left of a blue square above a green triangle and"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_prompts_that_are_cut_or_read_alike_are_told(project, caplog, capability: str) -> None:
    params, paths = project
    rows = [dict(row) for row in read_bucket(paths.bucket(capability), "train")]
    rows[1]["prompt"], rows[4]["prompt"] = f"{LONG} a yellow star", f"{LONG} a white ring"
    rows[6]["prompt"], rows[7]["prompt"] = "a red circle", "a RED  circle"
    spoilt(paths, capability, rows)
    cache.run(params, paths, capability)
    assert caplog.text.count("are longer than the text encoder's window, such as") == 1
    assert "2 of " in caplog.text
    assert "text_encoder reads 11 of its 16 tokens" in caplog.text
    assert "dropped 'triangle and a white ring'" in caplog.text
    assert "4 prompts with different texts are 2 to the text encoder, such as" in caplog.text
    index = json.loads((paths.cache(capability) / "index.json").read_text())["reading"]
    assert (index["num_cut"], index["num_read_alike"]) == (2, 4)
    assert len(index["cut"]) == 2
    assert ["a RED  circle", "a red circle"] in index["read_alike"]
    cached = ConditionCache(paths.cache(capability))
    one, other = (cached.groups[0].condition(torch.tensor([row])).tensors for row in (1, 4))
    torch.testing.assert_close(one["prompt_embeds"], other["prompt_embeds"])


def test_prompts_that_are_read_whole_are_not_spoken_of(made, project, caplog) -> None:
    params, paths = project
    cache.run(params, paths, "t2i")
    assert "the text encoder" not in caplog.text
    index = json.loads((paths.cache("t2i") / "index.json").read_text())
    nothing = {"num_cut": 0, "cut": [], "num_read_alike": 0, "read_alike": []}
    assert index["reading"] == nothing


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_teacher_samples_that_are_not_finite_are_not_cached(project, capability: str) -> None:
    params, paths = project
    config = params.capabilities[capability].model_copy(update={"guidance": 1e38})
    strong = params.model_copy(update={"capabilities": {**params.capabilities, capability: config}})
    message = (
        rf"row 0 \({capability}-train-00000\): the sample of teacher {config.teacher!r} for "
        rf"capability {capability!r} \(guidance 1e\+38, 2 steps\) is not finite, as are 4 of 4"
    )
    with pytest.raises(WeightsError, match=message):
        cache.run(strong, paths, capability)
    assert not paths.cache(capability).exists()
    assert list(paths.scratch.rglob("samples-*")) == []


def test_embeddings_that_are_not_finite_are_not_cached(project) -> None:
    params, paths = project
    file = paths.teachers / "frozen" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.weight"] = torch.full((16, 16), 3e38)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})
    meta = json.loads((paths.teachers / "manifest.json").read_text())
    meta.pop("files")
    write_manifest(paths.teachers, meta)
    with pytest.raises(WeightsError, match="prompt '.*': the text encoder's pooled is not finite"):
        cache.run(params, paths, "t2i")
    assert not paths.cache("t2i").exists()


@pytest.mark.parametrize("kind", ["target", "source"])
def test_latents_that_are_not_finite_are_not_cached(
    project, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    params, paths = project
    read = cache.images_of

    def overflowing(dataset, rows, name: str) -> torch.Tensor:
        return read(dataset, rows, name) * (float("inf") if name == kind and 7 in rows else 1)

    monkeypatch.setattr(cache, "images_of", overflowing)
    with pytest.raises(
        WeightsError, match=rf"row 4 \(.*00004\): the codec's latents of the {kind}"
    ):
        cache.run(params, paths, "local_edit")
    assert not paths.cache("local_edit").exists()


def spoilt(paths: Paths, bucket: str, rows: list[dict]) -> None:
    shutil.rmtree(paths.bucket(bucket) / "train")
    write_bucket(paths.bucket(bucket) / "train", rows)


def test_a_corrupt_image_is_named_and_the_stage_works_when_it_is_mended(project) -> None:
    params, paths = project
    rows = [dict(row) for row in read_bucket(paths.bucket("local_edit"), "train")]
    whole = rows[7]["source"]
    rows[7] = {**rows[7], "source": {"bytes": whole["bytes"][:60], "path": None}}
    spoilt(paths, "local_edit", rows)
    with pytest.raises(DataError, match=r"row 7 \(local_edit-train-00007\), source: the image is"):
        cache.run(params, paths, "local_edit")
    assert not paths.cache("local_edit").exists()
    assert list(paths.root.rglob("*.partial")) == []
    rows[7]["source"] = whole
    spoilt(paths, "local_edit", rows)
    cache.run(params, paths, "local_edit")
    assert len(ConditionCache(paths.cache("local_edit"))) == len(rows)


def test_an_empty_bucket_is_named(project) -> None:
    params, paths = project
    spoilt(paths, "t2i", [])
    with pytest.raises(DataError, match=f"{paths.bucket('t2i')}/train: this bucket is empty"):
        cache.run(params, paths, "t2i")
    assert not paths.cache("t2i").exists()
