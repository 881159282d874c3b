"""Teachers in memory: adapters on one shared base, whole networks beside it, waiting or not."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, awake, shake, small_sd3
from torch import nn
from torch._dynamo.testing import CompileCounter

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models import memory
from danceflow.models import teachers as teachers_module
from danceflow.models.adapters.lora import (
    AdapterField,
    add_student_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from danceflow.models.memory import (
    Memory,
    WaitingField,
    compile_blocks,
    recompute_activations,
)
from danceflow.models.package import FROZEN_FOLDER, write_manifest
from danceflow.models.teachers import Teachers

SIGMA = torch.tensor([0.9, 0.3])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def family():
    return small_sd3()


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters on it and one network of its own."""
    place = tmp_path_factory.mktemp("teachers")
    family.save_frozen(place / FROZEN_FOLDER)
    family.save_backbone(awake(family, 1), place / "base")
    family.save_backbone(awake(family, 2), place / "whole")
    for seed, name in enumerate(("local", "global")):
        network = family.load_backbone(place / "base")
        shake(add_student_adapter(family, network, rank=2, alpha=4, seed=seed), seed)
        save_adapter(network, place / name)
    names = ["base", "local", "global", "whole"]
    write_manifest(place, {"family": "sd3", "teachers": names, "base": "base"})
    return place


@pytest.fixture(scope="module")
def inputs(family):
    return normal(family.latent_shape, [1, 2]), SIGMA, family.condition(PROMPTS)


def named(folder: Path, *names: str, **held) -> Teachers:
    return Teachers(folder, "sd3", list(names), Memory(**held))


def test_adapters_share_one_network(folder, inputs) -> None:
    teachers = named(folder, "base", "local", "global", "whole")
    networks = {name: id(network) for name, network in teachers.backbones.items()}
    assert networks["base"] == networks["local"] == networks["global"] == id(teachers.shared)
    assert networks["whole"] != networks["base"]
    assert teachers.reports.keys() == {"local", "global"}
    velocities = [teachers.field(name, 1.0)(*inputs) for name in teachers.backbones]
    for i, one in enumerate(velocities):
        for other in velocities[i + 1 :]:
            assert (one - other).abs().max() > 1e-3
    again = [teachers.field(name, 1.0)(*inputs) for name in teachers.backbones]
    assert all(torch.equal(a, b) for a, b in zip(velocities, again, strict=True))


def test_a_shared_teacher_is_what_it_is_alone(family, folder, inputs) -> None:
    teachers = named(folder, "base", "local", "global")
    for name in teachers.backbones:
        alone = family.new_backbone(0)
        alone.load_state_dict(teachers.merged({name: 1.0}))
        with torch.no_grad():
            expected = family.field(alone.eval())(*inputs)
        torch.testing.assert_close(teachers.field(name, 1.0)(*inputs), expected, **CLOSE)


def test_the_base_need_not_be_a_teacher_that_is_asked_for(folder, inputs) -> None:
    one, both = named(folder, "local"), named(folder, "base", "local")
    assert torch.equal(one.field("local", 1.0)(*inputs), both.field("local", 1.0)(*inputs))


def test_guidance_reaches_a_shared_teacher(folder, inputs) -> None:
    teachers = named(folder, "local")
    family, (z, sigma, condition) = teachers.family, inputs
    plain, guided = (teachers.field("local", scale)(*inputs) for scale in (1.0, 2.0))
    empty = teachers.field("local", 1.0)(z, sigma, family.null(condition))
    torch.testing.assert_close(guided, empty + 2 * (plain - empty), **CLOSE)


def test_merged_adapters_are_the_average_of_the_teachers(family, folder, inputs) -> None:
    teachers = named(folder, "base", "local", "global")
    weights = {"base": 1.0, "local": 2.0, "global": 1.0}
    average = family.new_backbone(0)
    average.load_state_dict(teachers.merged(weights))
    assert teachers.shares_base(weights)
    pairs = teachers.merged_adapters(weights, rank=4)
    student = teachers.shared
    trained = add_student_adapter(family, student, 6, 12.0, seed=0, start=pairs)
    assert all(param.requires_grad for param in trained)
    with torch.no_grad():
        expected = family.field(average.eval())(*inputs)
        torch.testing.assert_close(family.field(student)(*inputs), expected, **CLOSE)


def networks_made(monkeypatch: pytest.MonkeyPatch, teachers: Teachers) -> list[str]:
    """Note from now on what makes a network: a new one, a loaded one, a copy."""
    made: list[str] = []
    for owner, name in (
        (type(teachers.family), "new_backbone"),
        (type(teachers.family), "load_backbone"),
        (teachers_module, "plain_copy"),
        (copy, "deepcopy"),
    ):
        whole = getattr(owner, name)

        def noted(*args, whole=whole, name=name, **options):
            if name != "deepcopy" or isinstance(args[0], nn.Module):
                made.append(name)
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, noted)
    return made


@pytest.mark.parametrize(
    "weights",
    [{"base": 1.0, "local": 2.0, "global": 1.0}, {"local": 1.0, "global": 1.0}],
    ids=["with the base", "adapters alone"],
)
def test_an_average_of_adapters_is_one_more_on_the_base(
    family, folder, inputs, monkeypatch, weights: dict[str, float]
) -> None:
    teachers = named(folder, "base", "local", "global")
    average = family.new_backbone(0)
    average.load_state_dict(teachers.merged(weights))
    asked = {name: teachers.field(name, 1.0)(*inputs) for name in teachers.backbones}
    made = networks_made(monkeypatch, teachers)
    field = teachers.average_field(weights, 1.0)
    found = field(*inputs)
    assert made == []
    with torch.no_grad():
        torch.testing.assert_close(found, family.field(average.eval())(*inputs), **CLOSE)
    for name, velocity in asked.items():
        assert torch.equal(teachers.field(name, 1.0)(*inputs), velocity)
    assert torch.equal(field(*inputs), found)


def test_adapters_of_several_widths_are_averaged_whole(family, folder, inputs, tmp_path) -> None:
    """Modules that one adapter changes alone are narrower in the average than those of both."""
    for name in (FROZEN_FOLDER, "base", "local"):
        (tmp_path / name).symlink_to(folder / name)
    network = family.load_backbone(folder / "base")
    shake(add_student_adapter(family, network, rank=3, alpha=1, seed=7), 7)
    path = save_adapter(network, tmp_path / "global")
    tensors = load_file(path)
    few = {key: value for key, value in tensors.items() if "blocks.0.attn.to_q" in key}
    assert 0 < len(few) < len(tensors)
    with safe_open(path, "pt") as file:
        settings = file.metadata()
    save_file(few, path, settings)
    names = ["base", "local", "global"]
    write_manifest(tmp_path, {"family": "sd3", "teachers": names, "base": "base"})
    teachers, weights = named(tmp_path, *names), {"local": 1.0, "global": 3.0}
    average = family.new_backbone(0)
    average.load_state_dict(teachers.merged(weights))
    with torch.no_grad():
        expected = family.field(average.eval())(*inputs)
    torch.testing.assert_close(teachers.average_field(weights, 1.0)(*inputs), expected, **CLOSE)


@pytest.mark.parametrize("name", ["base", "local", "whole"])
def test_an_average_of_one_is_that_teacher(folder, inputs, monkeypatch, name: str) -> None:
    teachers = named(folder, "base", "local", "whole")
    made = networks_made(monkeypatch, teachers)
    found = teachers.average_field({name: 3.0}, 1.5)(*inputs)
    assert made == []
    assert torch.equal(found, teachers.field(name, 1.5)(*inputs))
    with pytest.raises(WeightsError, match="do not fit"):
        teachers.average_field({"hole": 1.0}, 1.0)


def test_a_start_that_is_too_wide_is_told(folder, caplog) -> None:
    teachers = named(folder, "local", "global")
    pairs = teachers.merged_adapters({"local": 1.0, "global": 1.0}, rank=2)
    assert all(len(down) <= 2 for down, _ in pairs.values())
    assert "rank 2 holds" in caplog.text


def test_a_network_of_its_own_shares_no_base(folder) -> None:
    teachers = named(folder, "base", "whole")
    assert not teachers.shares_base({"base": 1.0, "whole": 1.0})
    with pytest.raises(WeightsError, match="do not fit"):
        teachers.merged_adapters({"hole": 1.0}, rank=2)


def test_teachers_that_wait_answer_alike(folder, inputs) -> None:
    here = named(folder, "base", "whole").field("whole", 1.5)(*inputs)
    for offload in ("teachers", "blocks"):
        teachers = named(folder, "base", "whole", offload=offload)
        assert torch.equal(teachers.field("whole", 1.5)(*inputs), here)
        assert not teachers.field("whole", 1.0)(*inputs).requires_grad


def test_a_teacher_that_waits_is_on_the_device_while_it_is_asked(folder, inputs, moves) -> None:
    teachers = named(folder, "base", "local", "whole", device="cuda", offload="teachers")
    shared, whole = teachers.shared, teachers.backbones["whole"]
    assert [device for network, device in moves if network is shared] == ["cuda"]
    assert whole not in [network for network, _ in moves]
    teachers.family.frozen_networks()
    moves.clear()
    whole.register_forward_pre_hook(lambda *_: moves.append((whole, "asked")))
    question = [(whole, "cuda"), (whole, "asked"), (whole, "cpu")]
    for guidance in (1.0, 1.5):
        teachers.field("whole", guidance)(*inputs)
        assert moves == question
        moves.clear()
    for name in ("base", "local"):
        teachers.field(name, 1.0)(*inputs)
    assert moves == []


def test_a_question_that_fails_leaves_the_device(inputs, moves) -> None:
    def failing(*_given) -> torch.Tensor:
        raise RuntimeError("out of memory")

    network = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        WaitingField(failing, network, "cuda")(*inputs)
    assert moves == [(network, "cuda"), (network, "cpu")]


def test_blocks_that_wait_are_on_the_device_one_at_a_time(
    folder, inputs, moves, monkeypatch
) -> None:
    from diffusers.hooks import group_offloading

    def bring(group) -> None:
        moves.extend((network, str(group.onload_device)) for network in group.modules)

    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", bring)
    monkeypatch.setattr(group_offloading, "send_to_device", lambda given, *_, **__: given)
    teachers = named(folder, "base", "whole", device="cuda", offload="blocks")
    shared, whole = teachers.shared, teachers.backbones["whole"]
    assert [device for network, device in moves if network is shared] == ["cuda"]
    assert {device for network, device in moves if network in set(whole.modules())} == {"cpu"}
    teachers.family.frozen_networks()
    moves.clear()
    teachers.field("whole", 1.5)(*inputs)
    blocks = list(whole.transformer_blocks)
    assert len(blocks) == 2
    one_by_one = [(block, device) for block in blocks for device in ("cuda", "cpu")]
    assert [move for move in moves if move[0] in blocks] == one_by_one
    others = [network for network in whole.children() if network is not whole.transformer_blocks]
    start, end = moves.index(one_by_one[0]), moves.index(one_by_one[-1])
    assert moves[:start] == [(network, "cuda") for network in others]
    assert moves[end + 1 :] == [(network, "cpu") for network in others]
    moves.clear()
    teachers.field("base", 1.0)(*inputs)
    assert moves == []


def test_a_bfloat16_base_carries_float32_adapters(family, folder, inputs) -> None:
    teachers = named(folder, "base", "local", dtype="bfloat16")
    dtypes = {n: p.dtype for n, p in teachers.shared.named_parameters()}
    assert {d for n, d in dtypes.items() if "lora_" in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if "lora_" not in n} == {torch.bfloat16}
    params = add_student_adapter(family, teachers.shared, 2, 2.0, seed=0)
    assert {p.dtype for p in params} == {torch.float32}
    coarse, fine = teachers.field("local", 1.0)(*inputs), named(folder, "local").field("local", 1.0)
    expected = fine(*inputs)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - expected).norm() < 0.1 * expected.norm()


def test_an_adapter_without_a_base_is_told(family, folder, tmp_path: Path) -> None:
    for name in (FROZEN_FOLDER, "local"):
        (tmp_path / name).symlink_to(folder / name)
    write_manifest(tmp_path, {"family": "sd3", "teachers": ["local"]})
    with pytest.raises(WeightsError, match="local: holds an adapter, but manifest.json names no"):
        named(tmp_path, "local")


def test_checkpointing_gives_the_same_gradients_with_teachers_on_the_base(
    family, folder, inputs
) -> None:
    gradients = []
    for checkpointing in (False, True):
        teachers = named(folder, "base", "local")
        params = add_student_adapter(family, teachers.shared, 2, 2.0, seed=0)
        shake(params)
        if checkpointing:
            recompute_activations(teachers.shared)
        target = teachers.field("local", 1.0)(*inputs)
        loss = (family.field(teachers.shared)(*inputs) - target).square().mean()
        gradients.append(torch.autograd.grad(loss, params))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Stands behind compiled blocks, counts what it is given and leaves it as it is."""
    counter = CompileCounter()
    monkeypatch.setattr(memory, "compile_blocks", partial(compile_blocks, backend=counter))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counter
    torch._dynamo.reset()


def test_a_compiled_base_carries_adapters_and_their_gradients(
    family, folder, inputs, compiler
) -> None:
    found = []
    for compiled in (False, True):
        teachers = named(folder, "base", "local", compile=compiled)
        params = add_student_adapter(family, teachers.shared, 2, 2.0, seed=0)
        shake(params)
        if compiled:
            recompute_activations(teachers.shared)
        target = teachers.field("local", 1.0)(*inputs)
        velocity = family.field(teachers.shared)(*inputs)
        gradients = torch.autograd.grad((velocity - target).square().mean(), params)
        again = [teachers.field(name, 1.0)(*inputs) for name in teachers.backbones]
        merged = family.field(merge_adapter(teachers.shared))(*inputs)
        found.append([target, velocity, *gradients, *again, merged])
        assert any(gradient.abs().max() > 0 for gradient in gradients)
        assert (compiler.frame_count > 0) == compiled
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_compiled_block_stays_compiled_in_many_variants(compiler) -> None:
    class Block(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z + 1

    network = nn.Module()
    network.blocks = nn.ModuleList([Block()])
    memory.compile_blocks(network, dynamic=False)
    for num_rows in range(1, 21):
        network.blocks[0](torch.ones(num_rows, 2))
    assert compiler.frame_count == 20


def test_networks_that_cannot_are_told() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(WeightsError, match="Linear has no repeated blocks"):
        compile_blocks(network)
    with pytest.raises(WeightsError, match="Linear has no activation checkpointing"):
        recompute_activations(network)
    with pytest.raises(WeightsError, match="Linear cannot be offloaded by blocks"):
        Memory(offload="blocks").place(network, waits=True)


# Folders of teachers


@pytest.fixture
def teachers(family, tmp_path: Path) -> Path:
    family.save_frozen(tmp_path / FROZEN_FOLDER)
    for seed, name in enumerate(("base", "local", "global")):
        family.save_backbone(awake(family, seed), tmp_path / name)
    write_manifest(tmp_path, {"family": "sd3", "teachers": ["base", "local", "global"]})
    return tmp_path


def test_teachers_are_frozen_and_have_their_own_guidance(family, teachers) -> None:
    loaded = Teachers(teachers, "sd3", ["base", "local"], "cpu")
    assert list(loaded.backbones) == ["base", "local"]
    for backbone in loaded.backbones.values():
        assert not backbone.training
        assert not any(p.requires_grad for p in backbone.parameters())
    z, condition = normal(family.latent_shape, [1, 2]), loaded.family.condition(PROMPTS)
    plain, guided = (loaded.field("local", scale)(z, SIGMA, condition) for scale in (1.0, 2.0))
    empty = loaded.field("local", 1.0)(z, SIGMA, loaded.family.null(condition))
    torch.testing.assert_close(guided, empty + 2 * (plain - empty), rtol=1e-4, atol=1e-4)


@pytest.fixture
def with_adapter(family, teachers: Path) -> Path:
    """Teachers with a fourth one: an adapter on the base."""
    backbone = family.load_backbone(teachers / "base")
    with torch.no_grad():
        for index, param in enumerate(add_student_adapter(family, backbone, 2, 2, seed=0)):
            param += 0.1 * normal(param.shape, [index])[0]
    save_adapter(backbone, teachers / "realism")
    names = ["base", "local", "global", "realism"]
    write_manifest(teachers, {"family": "sd3", "teachers": names, "base": "base"})
    return teachers


def test_a_teacher_may_be_an_adapter_on_another(family, with_adapter) -> None:
    assert sum(f.stat().st_size for f in (with_adapter / "realism").iterdir()) < 100_000
    loaded = Teachers(with_adapter, "sd3", ["base", "realism"], "cpu")
    assert not any(p.requires_grad for p in loaded.backbones["realism"].parameters())
    backbone = family.load_backbone(with_adapter / "base")
    load_adapter(backbone, with_adapter / "realism", "realism")
    z, condition = normal(family.latent_shape, [1, 2]), loaded.family.condition(PROMPTS)
    expected = AdapterField(family, backbone, "realism")(z, SIGMA, condition)
    velocity = loaded.field("realism", 1.0)(z, SIGMA, condition)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    bare = loaded.field("base", 1.0)(z, SIGMA, condition)
    assert (velocity - bare).norm() > 0.05 * bare.norm()
    alone = Teachers(with_adapter, "sd3", ["realism"], "cpu").field("realism", 1.0)
    assert torch.equal(alone(z, SIGMA, condition), velocity)
    merged = loaded.merged({"base": 1.0, "realism": 1.0})
    assert merged.keys() == family.load_backbone(with_adapter / "base").state_dict().keys()


def test_merging_averages_the_weights(teachers) -> None:
    loaded = Teachers(teachers, "sd3", ["base", "local", "global"], "cpu")
    merged = loaded.merged({"base": 1.0, "global": 3.0})
    states = {name: backbone.state_dict() for name, backbone in loaded.backbones.items()}
    for name, value in merged.items():
        expected = 0.25 * states["base"][name] + 0.75 * states["global"][name]
        torch.testing.assert_close(value, expected)
    alone = loaded.merged({"local": 2.0})
    assert all(torch.equal(alone[name], value) for name, value in states["local"].items())


@pytest.mark.parametrize("weights", [{"base": 0.0}, {"base": 1.0, "lokal": 1.0}, {}])
def test_weights_that_do_not_fit_are_told(teachers, weights) -> None:
    loaded = Teachers(teachers, "sd3", ["base"], "cpu")
    with pytest.raises(WeightsError, match="do not fit"):
        loaded.merged(weights)


def test_a_teacher_that_is_not_there_is_told(teachers) -> None:
    with pytest.raises(WeightsError, match="no teacher 'realism'; known: base, local, global"):
        Teachers(teachers, "sd3", ["realism"], "cpu")


def test_teachers_of_another_family_are_told(teachers) -> None:
    with pytest.raises(WeightsError, match=r"of family 'sd3', params.yaml asks for 'flux2'"):
        Teachers(teachers, "flux2", ["base"], "cpu")
