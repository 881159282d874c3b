"""How strong a LoRA is: every place where writers say it, read as they mean it or refused."""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import PROMPTS, TINY_FAMILIES, awake
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.lora import AdapterField, load_adapter, read_adapter_for
from danceflow.models.family import ModelFamily

RANK, ALPHA, OTHER = 4, 0.25, 16.0
MODULES = ("to_q", "to_v", "add_q_proj", "to_out.0")
BLOCK = "transformer_blocks.0.attn"
WEIGHTS = "epoch10.safetensors"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
Factors = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    return TINY_FAMILIES["flux2"]["klein"](tmp_path_factory.mktemp("flux2"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    TINY_FAMILIES["flux2"]["klein"](folder)
    return folder


@pytest.fixture(scope="module")
def base(family: ModelFamily) -> nn.Module:
    return awake(family)


@pytest.fixture(scope="module")
def factors(base: nn.Module) -> Factors:
    found = {}
    for seed, end in enumerate(MODULES):
        module = base.get_submodule(f"{BLOCK}.{end}")
        down = normal((RANK, module.in_features), [seed])[0]
        found[f"{BLOCK}.{end}"] = down, normal((module.out_features, RANK), [seed + 50])[0]
    return found


@dataclass
class Written:
    """A LoRA on its way to disk."""

    factors: Factors
    prefix: str = "transformer."
    name: str = WEIGHTS
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        named = dict(self.tensors)
        for module, (down, up) in self.factors.items():
            named[f"{self.prefix}{module}.lora_A.weight"] = down.clone()
            named[f"{self.prefix}{module}.lora_B.weight"] = up.clone()
        save_file(named, folder / self.name, self.metadata)
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        return folder / self.name


def own_alphas(made: Written, alpha: float) -> None:
    made.tensors |= {f"{made.prefix}{m}.alpha": torch.tensor(alpha) for m in made.factors}


def beside(made: Written, alpha: float) -> None:
    made.config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha}
    made.config["target_modules"] = sorted(made.factors)


def entry(key: str, rank: str | None = None) -> Callable[[Written, float], None]:
    def say(made: Written, alpha: float) -> None:
        made.metadata[key] = str(alpha)
        if rank is not None:
            made.metadata[rank] = str(RANK)

    return say


def nested(key: str, prefix: str) -> Callable[[Written, float], None]:
    def say(made: Written, alpha: float) -> None:
        settings = {"r": RANK, "lora_alpha": alpha, "target_modules": sorted(made.factors)}
        made.metadata[key] = json.dumps({prefix + name: v for name, v in settings.items()})

    return say


PLACES: dict[str, Callable[[Written, float], None]] = {
    "the tensor alpha": own_alphas,
    "lora_alpha of adapter_config.json": beside,
    "transformer.lora_alpha of lora_adapter_metadata": nested(
        "lora_adapter_metadata", "transformer."
    ),
    "lora_alpha of lora_config": nested("lora_config", ""),
    "lora_alpha in its metadata": entry("lora_alpha", "rank"),
    "transformer.lora_alpha in its metadata": entry("transformer.lora_alpha", "transformer.r"),
    "network_alpha in its metadata": entry("network_alpha", "network_dim"),
    "ss_network_alpha in its metadata": entry("ss_network_alpha", "ss_network_dim"),
    "alpha in its metadata": entry("alpha"),
}
PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.", "")


def inputs(family: ModelFamily) -> tuple[Any, ...]:
    return normal(family.latent_shape, [1, 2]), torch.tensor([0.9, 0.3]), family.condition(PROMPTS)


def found_velocity(family: ModelFamily, base: nn.Module, path: Path) -> Tensor:
    network = copy.deepcopy(base)
    load_adapter(network, path, "teacher", family.translate_adapter)
    return AdapterField(family, network, "teacher")(*inputs(family))


@torch.no_grad()
def peft_velocity(family: ModelFamily, base: nn.Module, factors: Factors, folder: Path) -> Tensor:
    """What PEFT itself makes of the factors and ``ALPHA``."""
    from peft import PeftModel

    made = Written(factors, prefix="base_model.model.", name="adapter_model.safetensors")
    beside(made, ALPHA)
    made.write(folder)
    network = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    return family.field(network)(*inputs(family))


@pytest.fixture(scope="module")
def expected(family, base, factors, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    velocity = peft_velocity(family, base, factors, tmp_path_factory.mktemp("peft"))
    with torch.no_grad():
        plain = family.field(base)(*inputs(family))
    assert (velocity - plain).abs().max() > 1e-2
    return velocity


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_velocity_of_its_writer(
    family, base, factors, expected, tmp_path: Path, place: str, prefix: str
) -> None:
    made = Written(factors, prefix)
    PLACES[place](made, ALPHA)
    path = made.write(tmp_path)
    torch.testing.assert_close(found_velocity(family, base, path), expected, **CLOSE)
    report = load_adapter(copy.deepcopy(base), path, "teacher")
    assert report.alpha == pytest.approx(ALPHA)
    assert place.removeprefix("the tensor ") in str(report)


def as_diffusers(folder: Path, factors: Factors) -> Path:
    made = Written(factors)
    PLACES["transformer.lora_alpha of lora_adapter_metadata"](made, ALPHA)
    return made.write(folder)


def as_kohya(folder: Path, factors: Factors) -> Path:
    down, up = factors[f"{BLOCK}.to_out.0"]
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    folder.mkdir(exist_ok=True)
    save_file({**tensors, f"{name}.alpha": torch.tensor(ALPHA)}, folder / WEIGHTS)
    return folder / WEIGHTS


@pytest.mark.parametrize("write", [as_diffusers, as_kohya])
@torch.no_grad()
def test_the_stock_pipeline_reads_it_so_too(
    family, base, factors, pipeline, tmp_path: Path, write: Callable[[Path, Factors], Path]
) -> None:
    from diffusers import Flux2KleinPipeline

    path = write(tmp_path, factors)
    stock = Flux2KleinPipeline.from_pretrained(pipeline)
    stock.transformer.load_state_dict(base.state_dict())
    stock.load_lora_weights(path.parent, weight_name=path.name)
    theirs = family.field(stock.transformer.eval())(*inputs(family))
    found = found_velocity(family, base, path)
    torch.testing.assert_close(found, theirs, **CLOSE)
    assert (found - family.field(base)(*inputs(family))).abs().max() > 1e-3


def test_a_file_that_says_nothing_has_alpha_equal_to_rank(base, factors, tmp_path: Path) -> None:
    path = Written(factors).write(tmp_path)
    report = load_adapter(copy.deepcopy(base), path, "teacher")
    assert report.alpha == RANK
    assert "no place says it" in str(report)


@pytest.mark.parametrize("pair", [*itertools.combinations(PLACES, 2)], ids=" and ".join)
def test_places_agree_or_both_are_named(
    base, factors, tmp_path: Path, pair: tuple[str, str]
) -> None:
    one, other = pair
    made = Written(factors)
    PLACES[one](made, ALPHA)
    PLACES[other](made, ALPHA)
    file = read_adapter_for(base, made.write(tmp_path))
    assert file.alpha / file.rank == pytest.approx(ALPHA / RANK)
    PLACES[other](made, OTHER)
    path = made.write(tmp_path)
    with pytest.raises(WeightsError) as told:
        read_adapter_for(base, path)
    for word in (str(path), one, other, "0.0625", "4", BLOCK):
        assert word in str(told.value)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "the tensor alpha"])
def test_what_is_said_of_another_rank_is_refused(base, factors, tmp_path, place: str) -> None:
    made = Written(factors)
    PLACES[place](made, ALPHA)
    made.metadata = {
        key: value.replace(f'r": {RANK}', 'r": 8').replace(str(RANK), "8")
        for key, value in made.metadata.items()
        if key != "alpha"
    } | ({"alpha": str(ALPHA), "r": "8"} if place == "alpha in its metadata" else {})
    if made.config is not None:
        made.config["r"] = 8
    with pytest.raises(WeightsError, match=rf"{place} gives .* the rank 8, .* have rank 4"):
        read_adapter_for(base, made.write(tmp_path))


@pytest.mark.parametrize("value", ["nan", "inf", "0", "16 or so", "true"])
@pytest.mark.parametrize("place", ["lora_alpha", "network_alpha", "alpha"])
def test_an_alpha_that_is_no_number_is_refused(base, factors, tmp_path, place, value) -> None:
    made = Written(factors, metadata={place: value})
    with pytest.raises(WeightsError, match=f"{place} in its metadata cannot be read as a number"):
        read_adapter_for(base, made.write(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), None, 0, True, "much"])
def test_a_config_whose_alpha_is_no_number_is_refused(base, factors, tmp_path, value) -> None:
    made = Written(factors, config={"r": RANK, "lora_alpha": value})
    with pytest.raises(WeightsError, match="lora_alpha of adapter_config.json cannot be read"):
        read_adapter_for(base, made.write(tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"use_dora": True}, "says use_dora, but the file holds no magnitudes"),
        ({"use_qalora": True}, "use_qalora are not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication are not supported"),
        ({"peft_type": "LOHA"}, "is about a LOHA, not a LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "began with pissa_niter_4 .* changes the base"),
        ({"init_lora_weights": "olora"}, "began with olora"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern of adapter_config.json cannot be read"),
        ({"alpha_pattern": [3]}, "alpha_pattern of adapter_config.json cannot be read"),
        ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern .* cannot be read as a number"),
    ],
)
def test_settings_of_another_update_are_refused(base, factors, tmp_path, more, message) -> None:
    made = Written(factors)
    beside(made, ALPHA)
    made.config |= more
    with pytest.raises(WeightsError, match=message):
        read_adapter_for(base, made.write(tmp_path))


@pytest.mark.parametrize("start", [True, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_base_alone_is_taken(base, factors, tmp_path, start) -> None:
    made = Written(factors)
    beside(made, ALPHA)
    made.config["init_lora_weights"] = start
    assert read_adapter_for(base, made.write(tmp_path)).alpha == ALPHA


@torch.no_grad()
def test_patterns_and_roots_are_pefts(family, base, factors, tmp_path: Path) -> None:
    from peft import PeftModel

    wide = dict(factors)
    name = f"{BLOCK}.to_v"
    wide[name] = tuple(torch.cat([part, part], dim=at) for at, part in enumerate(factors[name]))
    made = Written(wide, "base_model.model.", "adapter_model.safetensors")
    beside(made, ALPHA)
    made.config |= {
        "use_rslora": True,
        "rank_pattern": {rf"^{BLOCK}\.to_v": 2 * RANK},
        "alpha_pattern": {"to_q": 3.0, f"{BLOCK}.to_q": 5.0, "to_out.0": 2.0},  # the first counts
    }
    made.write(tmp_path)
    network = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    theirs = family.field(network)(*inputs(family))
    torch.testing.assert_close(found_velocity(family, base, tmp_path), theirs, **CLOSE)


@pytest.mark.parametrize("value", ["None", "Dynamic", "0", ""])
def test_kohyas_words_for_nothing_say_nothing(base, factors, tmp_path, value: str) -> None:
    made = Written(factors, metadata={"ss_network_alpha": value, "ss_network_dim": "Dynamic"})
    own_alphas(made, ALPHA)
    assert read_adapter_for(base, made.write(tmp_path)).alpha == ALPHA


def test_kohyas_modules_may_have_alphas_of_their_own(base, factors, tmp_path: Path) -> None:
    made = Written(factors)
    PLACES["ss_network_alpha in its metadata"](made, OTHER)
    made.metadata["ss_network_args"] = '{"conv_dim": "4", "conv_alpha": "0.25"}'
    with pytest.raises(WeightsError, match="is not the alpha of every module .* no alpha of its"):
        read_adapter_for(base, made.write(tmp_path))
    own_alphas(made, ALPHA)
    assert read_adapter_for(base, made.write(tmp_path)).alpha == ALPHA


def test_an_alpha_of_several_numbers_is_refused(base, factors, tmp_path: Path) -> None:
    made = Written(factors)
    own_alphas(made, ALPHA)
    made.tensors[f"transformer.{BLOCK}.to_q.alpha"] = torch.ones(3)
    with pytest.raises(WeightsError, match=r"alpha of .*to_q has shape \(3,\)"):
        read_adapter_for(base, made.write(tmp_path))


def test_settings_of_the_text_encoder_alone_say_nothing(base, factors, tmp_path: Path) -> None:
    said = json.dumps({"text_encoder.r": 8, "text_encoder.lora_alpha": 1.0})
    made = Written(factors, metadata={"lora_adapter_metadata": said, "text_encoder.alpha": "1"})
    assert read_adapter_for(base, made.write(tmp_path)).alpha == RANK


def test_a_config_that_may_be_another_files_is_not_guessed(base, factors, tmp_path: Path) -> None:
    made = Written(factors, "base_model.model.", "adapter_model.safetensors")
    beside(made, ALPHA)
    assert read_adapter_for(base, made.write(tmp_path)).alpha == ALPHA
    other = Written(factors)
    with pytest.raises(WeightsError, match="may be about adapter_model.safetensors alone"):
        read_adapter_for(base, other.write(tmp_path))
    own_alphas(other, 8.0)
    assert read_adapter_for(base, other.write(tmp_path)).alpha == 8.0


ORIGINAL = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("place", PLACES)
def test_scales_are_kept_when_names_are_translated(
    family, base, tmp_path: Path, place: str, prefix: str
) -> None:
    width = base.get_submodule(f"{BLOCK}.to_q").in_features
    down, up = normal((RANK, width), [7])[0], normal((3 * width, RANK), [8])[0]
    made = Written({ORIGINAL: (down, up)}, prefix)
    PLACES[place](made, ALPHA)
    path = made.write(tmp_path)
    file = read_adapter_for(base, path, family.translate_adapter)
    assert file.alpha == pytest.approx(ALPHA)
    for name, part in zip(("to_q", "to_k", "to_v"), up.split(width), strict=True):
        first, second = file.pairs[f"{BLOCK}.{name}"]
        update = file.alpha / file.rank * second @ first
        torch.testing.assert_close(update, ALPHA / RANK * part @ down, **CLOSE)


def test_a_scale_that_cannot_be_given_to_its_factors_is_told(base, factors, tmp_path) -> None:
    made = Written(factors, metadata={"lora_alpha": str(ALPHA)})
    made.tensors = {"strange": torch.ones(1)}

    def translate(found: dict[str, Tensor]) -> dict[str, Tensor]:
        first = next(key for key in found if key.endswith("A.weight"))
        found[first] = found[first] * found.pop("strange")
        return found

    with pytest.raises(WeightsError, match=r"strange has a spelling .* lora_alpha in its metadata"):
        read_adapter_for(base, made.write(tmp_path), translate)


def test_factors_of_no_width_are_refused(base, factors, tmp_path: Path) -> None:
    name = f"{BLOCK}.to_q"
    down, up = factors[name]
    made = Written({name: (down[:0], up[:, :0])}, metadata={"lora_alpha": "4"})
    with pytest.raises(WeightsError, match="to_q needs factors"):
        read_adapter_for(base, made.write(tmp_path))
