"""Teachers that were trained elsewhere become the folder that the stages read."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, shake, stock_pipeline
from tiny_stock import stock_family, zimage_pipeline

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.lora import add_student_adapter, save_adapter
from danceflow.models.bring import bring_teachers, stated_licence
from danceflow.models.family import open_family
from danceflow.models.package import read_manifest
from danceflow.models.teachers import Teachers

SIGMA = torch.tensor([0.9, 0.3])


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    stock_pipeline(with_t5=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = open_family("sd3", stock)
    backbone = family.load_backbone(stock / "transformer")
    shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=0))
    return save_adapter(backbone, tmp_path_factory.mktemp("adapter"))


def test_adapters_and_networks_are_brought_along(stock: Path, adapter: Path, tmp_path) -> None:
    given = {"local": adapter, "whole": stock}
    licences = {"local": "apache-2.0"}
    bring_teachers("sd3", stock, given, tmp_path / "teachers", edits=True, licences=licences)
    told = read_manifest(tmp_path / "teachers")
    assert told["licences"] == {"base": None, "local": "apache-2.0", "whole": None}
    assert told["origin"] == str(stock)
    assert set(told["digests"]) == {"frozen", "base", "whole"}
    assert told["digests"]["whole"] == told["digests"]["base"]
    teachers = Teachers(tmp_path / "teachers", "sd3", ["base", "local", "whole"], "cpu")
    assert teachers.family.takes_source
    assert teachers.backbones["local"] is teachers.shared is not teachers.backbones["whole"]
    family = teachers.family
    z = normal(family.latent_shape, [1, 2])
    condition = family.condition(PROMPTS, normal(family.latent_shape, [3, 4]))
    base, local, whole = (
        teachers.field(name, 1.0)(z, SIGMA, condition) for name in ("base", "local", "whole")
    )
    torch.testing.assert_close(whole, base, rtol=1e-4, atol=1e-5)
    assert (local - base).abs().max() > 1e-2


def by_peft(network: torch.nn.Module, config, folder: Path) -> torch.nn.Module:
    """PEFT's own network with a random adapter, which it saved to ``folder``."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapted = get_peft_model(network, config).eval()
        shake(param for param in adapted.parameters() if param.requires_grad)
    adapted.save_pretrained(folder)
    return adapted.requires_grad_(False)


def test_dora_loha_and_lokr_teachers_teach_what_they_are(stock: Path, tmp_path, caplog) -> None:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    family, targets = open_family("sd3", stock), ["attn.to_q", "attn.to_k"]
    configs = {
        "dora": LoraConfig(r=2, use_dora=True, target_modules=targets),
        "loha": LoHaConfig(r=2, alpha=2, target_modules=targets),
        "lokr": LoKrConfig(r=64, alpha=64, decompose_factor=2, target_modules=targets),
    }
    theirs = {
        name: by_peft(family.load_backbone(stock / "transformer"), config, tmp_path / name)
        for name, config in configs.items()
    }
    caplog.set_level("INFO")
    given = {name: tmp_path / name for name in configs}
    bring_teachers("sd3", stock, given, tmp_path / "teachers", edits=False)
    teachers = Teachers(tmp_path / "teachers", "sd3", ["base", *configs], "cpu")
    assert teachers.backbones["loha"] is teachers.shared is not teachers.backbones["dora"]
    assert teachers.backbones["lokr"] is not teachers.shared
    assert "'dora' (DoRA, peft): 4 of" in caplog.text
    assert caplog.text.count("merged into a network of its own") == 2
    z, condition = normal(family.latent_shape, [1, 2]), family.condition(PROMPTS)
    for name, network in theirs.items():
        with torch.no_grad():
            expected = family.field(network)(z, SIGMA, condition)
        found = teachers.field(name, 1.0)(z, SIGMA, condition)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-3)  # on disk as float16


@pytest.mark.parametrize(
    ("card", "metadata", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", {}, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: of-us\n---\n", {}, "of-us"),
        ("---\nlicense: [broken\n---\n", {"modelspec.license": "mit"}, "mit"),
        (None, {"modelspec.license": "mit"}, "mit"),
        ("# No head\n", {}, None),
        (None, {}, None),
    ],
)
def test_a_licence_is_read_beside_the_weights(
    tmp_path: Path, card: str | None, metadata: dict[str, str], licence: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors", metadata)
    assert stated_licence(tmp_path) == licence
    assert stated_licence(tmp_path / "lora.safetensors") == licence


def test_what_does_not_fit_leaves_nothing_behind(stock: Path, adapter: Path, tmp_path) -> None:
    place = tmp_path / "teachers"
    other = stock_family("zimage", zimage_pipeline(), tmp_path / "zimage")
    assert not other.takes_source
    for family, pipeline, teachers, edits, message in (
        ("sd3", stock, {"base": adapter}, False, "can be called 'base'"),
        ("sd3", stock, {"local": tmp_path / "nowhere"}, False, "weights are missing"),
        ("zimage", tmp_path / "zimage", {"local": adapter}, False, "belongs to no module"),
        ("zimage", tmp_path / "zimage", {}, True, "ZImagePipeline cannot edit"),
    ):
        with pytest.raises(WeightsError, match=message):
            bring_teachers(family, pipeline, teachers, place, edits=edits)
        assert not place.exists()


def poisoned(path: Path, value: float) -> str:
    """Write a value into the middle one of a file's tensors and return that tensor's name."""
    tensors = load_file(path)
    floats = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())
    name = floats[len(floats) // 2]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "part", ["transformer", "vae", "text_encoder", "text_encoder_2", "adapter", "whole"]
)
def test_what_is_not_finite_is_refused_by_name(
    stock: Path, adapter: Path, tmp_path: Path, part: str, value: float
) -> None:
    pipeline, lora, whole = (tmp_path / name for name in ("pipeline", "lora", "whole"))
    shutil.copytree(stock, pipeline)
    shutil.copytree(adapter.parent, lora)
    shutil.copytree(stock / "transformer", whole)
    folder = {"adapter": lora, "whole": whole}.get(part, pipeline / part)
    name = poisoned(next(folder.glob("*.safetensors")), value)
    with pytest.raises(WeightsError, match=rf"{name} holds NaN or infinity \(1 of ") as told:
        bring_teachers("sd3", pipeline, {"l": lora, "w": whole}, tmp_path / "out", edits=True)
    assert str(folder) in str(told.value)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("*.partial*")) == []
