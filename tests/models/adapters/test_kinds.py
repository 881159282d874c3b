"""LoHa, LoKr and DoRA as others write them: read exactly, or refused by name."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, awake, small_sd3
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.lora import add_adapter, merged_network, read_adapter_for

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
BLOCK = "transformer_blocks.0"
TARGETS = [f"{BLOCK}.attn.to_q", f"{BLOCK}.ff.net.2", "pos_embed.proj"]


@pytest.fixture(scope="module")
def family():
    return small_sd3()


@pytest.fixture(scope="module")
def base(family) -> nn.Module:
    return awake(family)


@pytest.fixture(scope="module")
def inputs(family):
    z, sigma = normal(family.latent_shape, [1, 2]), torch.tensor([0.9, 0.3])
    return z, sigma, family.condition(PROMPTS)


def peft_config(kind: str):
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    linear, rest = TARGETS[:2], {"target_modules": TARGETS}
    return {
        "loha": lambda: LoHaConfig(r=2, alpha=3, **rest),
        "loha_tucker": lambda: LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, **rest),
        "loha_patterns": lambda: LoHaConfig(r=2, alpha=3, rank_pattern={"to_q": 3}, **rest),
        "lokr": lambda: LoKrConfig(r=1, alpha=3, **rest),
        "lokr_both": lambda: LoKrConfig(
            r=1, alpha=3, decompose_both=True, use_effective_conv2d=True, **rest
        ),
        "lokr_whole": lambda: LoKrConfig(r=64, alpha=32, **rest),
        "dora": lambda: LoraConfig(r=2, lora_alpha=3, use_dora=True, **rest),
        "dora_root": lambda: LoraConfig(
            r=2, lora_alpha=3, use_dora=True, use_rslora=True, target_modules=linear
        ),
    }[kind]()


def by_peft(base: nn.Module, kind: str, folder: Path) -> nn.Module:
    """PEFT's own network with a random adapter, which it saved to ``folder``."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = get_peft_model(copy.deepcopy(base), peft_config(kind)).eval()
        for param in network.parameters():
            if param.requires_grad:
                param.data += 0.2 * torch.randn(param.shape)
    network.save_pretrained(folder)
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "said", "alone"),
    [
        ("loha", "LoHa", False),
        ("loha_tucker", "LoHa", False),
        ("loha_patterns", "LoHa", False),
        ("lokr", "LoKr", None),
        ("lokr_both", "LoKr", None),
        ("lokr_whole", "LoKr", None),
        ("dora", "DoRA", True),
        ("dora_root", "DoRA", True),
    ],
)
def test_what_peft_saved_gives_what_peft_gives(
    family, base, inputs, tmp_path: Path, kind: str, said: str, alone: bool | None
) -> None:
    theirs = by_peft(base, kind, tmp_path)
    file = read_adapter_for(base, tmp_path, family.translate_adapter)
    assert (file.kind, file.layout) == (said, "peft")
    assert set(file.pairs) <= set(TARGETS)
    if alone is not None:
        assert file.needs_network is alone
    with torch.no_grad():
        expected = family.field(theirs)(*inputs)
        found = family.field(merged_network(base, file))(*inputs)
        assert (expected - family.field(base)(*inputs)).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_loha_is_an_adapter_beside_others_on_the_base(
    family, base, inputs, tmp_path: Path
) -> None:
    theirs = by_peft(base, "loha", tmp_path)
    network = copy.deepcopy(base)
    file = read_adapter_for(network, tmp_path)
    report = add_adapter(network, file, "teacher")
    assert f"{report}" == (
        "adapter 'teacher' (LoHa, peft): 3 of "
        f"{report.num_candidates} modules, rank 4 as a LoRA, strength said by alpha of "
        "adapter_config.json"
    )
    with torch.no_grad():
        network.set_adapter("teacher")
        torch.testing.assert_close(
            family.field(network)(*inputs), family.field(theirs)(*inputs), **CLOSE
        )


def draw(*shape: int, seed: int) -> Tensor:
    return normal(shape, [seed])[0]


def weight(base: nn.Module, module: str) -> Tensor:
    return base.get_submodule(module).weight.detach()


def flat(module: str, prefix: str) -> str:
    return prefix + module.replace(".", "_")


@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
def test_lycoris_has_alphas_of_its_own(base, tmp_path: Path, prefix: str) -> None:
    module, other = TARGETS[:2]
    (rows, columns), (tall, wide) = weight(base, module).shape, weight(base, other).shape
    loha = [draw(rows, 2, seed=1), draw(2, columns, seed=2)]
    loha += [draw(rows, 2, seed=3), draw(2, columns, seed=4)]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = dict(zip([f"{flat(module, prefix)}.{n}" for n in names], loha, strict=True))
    tensors[f"{flat(module, prefix)}.alpha"] = torch.tensor(1.0)
    whole = {"lokr_w1": draw(2, 2, seed=5), "lokr_w2": draw(tall // 2, wide // 2, seed=6)}
    tensors |= {f"{flat(other, prefix)}.{name}": value for name, value in whole.items()}
    tensors[f"{flat(other, prefix)}.alpha"] = torch.tensor(1e5)  # two whole matrices have no rank
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_adapter_for(base, tmp_path / "x.safetensors")
    assert file.kind == "LoHa and LoKr"
    merged = merged_network(base, file)
    update = 0.5 * (loha[0] @ loha[1]) * (loha[2] @ loha[3])
    torch.testing.assert_close(weight(merged, module), weight(base, module) + update, **CLOSE)
    update = torch.kron(whole["lokr_w1"], whole["lokr_w2"])
    torch.testing.assert_close(weight(merged, other), weight(base, other) + update, **CLOSE)


@pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("module", TARGETS[::2])
def test_dora_of_rows_and_of_columns(base, tmp_path: Path, module: str, by_row: bool) -> None:
    own = weight(base, module)
    down, up = draw(2, *own.shape[1:], seed=1), draw(len(own), 2, *[1] * (own.ndim - 2), seed=2)
    side = 0 if by_row else 1
    shape = [1] * own.ndim
    shape[side] = own.shape[side]
    lengths = 1 + draw(*shape, seed=3).abs()
    name = flat(module, "lora_unet_")
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(4.0),
        f"{name}.dora_scale": lengths,
    }
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_adapter_for(base, tmp_path / "x.safetensors")
    total = own + 2 * (up.flatten(1) @ down.flatten(1)).reshape(own.shape)
    axes = [axis for axis in range(own.ndim) if axis != side]
    expected = lengths * total / total.square().sum(axes, keepdim=True).sqrt()
    torch.testing.assert_close(weight(merged_network(base, file), module), expected, **CLOSE)
    with pytest.raises(WeightsError, match="'t' is a DoRA, which changes every weight's length"):
        add_adapter(copy.deepcopy(base), file, "t")


def changed(folder: Path, change) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


def key_of(tensors, end: str) -> str:
    return next(key for key in sorted(tensors) if key.endswith(end))


def test_what_cannot_be_had_is_refused_by_name(base, tmp_path: Path) -> None:
    def lose(end: str):
        return lambda tensors: tensors.pop(key_of(tensors, end))

    def widen(tensors) -> None:
        key = key_of(tensors, "attn.to_q.lora_magnitude_vector")
        tensors[key] = torch.ones(len(tensors[key]) + 1)

    def misfit(tensors) -> None:
        key = key_of(tensors, "to_q.hada_w1_b")
        tensors[key] = tensors[key][:, 1:].clone()

    for number, (kind, change, message) in enumerate(
        [
            ("loha", lose("to_q.hada_w2_b"), r"to_q has no hada_w2_b"),
            ("loha", misfit, r"the parts of .*to_q do not fit"),
            (
                "dora",
                lose("to_q.lora_magnitude_vector"),
                "say use_dora, but 1 of its modules .*to_",
            ),
            ("dora", widen, r"to_q has 17 magnitudes, not 16, one per row"),
        ]
    ):
        folder = tmp_path / f"{number}"
        by_peft(base, kind, folder)
        with pytest.raises(WeightsError, match=message):
            read_adapter_for(base, changed(folder, change))
    settings = {"peft_type": "OFT", "r": 2, "alpha": 2}
    (tmp_path / "0" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match="is about a OFT, not a LoHa"):
        read_adapter_for(base, tmp_path / "0")


def test_magnitudes_of_both_sides_are_refused(base, tmp_path: Path) -> None:
    tensors = {}
    for module, shape in zip(TARGETS[:2], ((-1, 1), (1, -1)), strict=True):
        rows, columns = weight(base, module).shape
        tensors[f"{module}.lora_A.weight"] = draw(1, columns, seed=1)
        tensors[f"{module}.lora_B.weight"] = draw(rows, 1, seed=2)
        tensors[f"{module}.dora_scale"] = torch.ones(rows if shape[0] < 0 else columns).view(shape)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"to_q are rows', those of .*net\.2 are columns'"):
        read_adapter_for(base, tmp_path / "x.safetensors")
