"""Sizes and costs of a transformer, against torch's own counts on real networks."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import TINY_FAMILIES, awake
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from danceflow.errors import WeightsError
from danceflow.models.adapters.lora import add_student_adapter
from danceflow.models.families.qwen_image import seen_tokens
from danceflow.models.family import FAMILIES, ModelFamily, layout_of
from danceflow.models.layout import Tokens
from danceflow.plan.architecture import published, published_architecture
from danceflow.plan.measure import measured, network_of
from danceflow.plan.network import ATTENTION_BACKWARD, Network
from danceflow.train.optim import Muon


def picture_tokens_21(size: tuple[int, int]) -> int:
    """The tokens that Qwen3-VL makes of a picture."""
    return (size[0] // 32) * (size[1] // 32)


CASES = [(family, shape) for family, shapes in TINY_FAMILIES.items() for shape in shapes]
SIDE = 64
# Wide enough that statistics per token and per head hardly count.
WIDE: dict[str, dict[str, Any]] = {
    "sd3": {"num_attention_heads": 2, "attention_head_dim": 64, "caption_projection_dim": 128},
    "flux2": {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 16, 16, 16),
    },
    "qwen_image": {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 24, 24),
    },
    "qwen_image21": {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 24, 24),
    },
    "zimage": {"dim": 128, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [16, 24, 24]},
}
DEPTH = {"zimage": "n_layers"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_usual_models_are_published(family: str) -> None:
    for name, edits in zip(layout_of(family).usual, (False, True), strict=True):
        assert published_architecture(name, edits=edits).family == family


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelFamily]:
    made: dict[tuple[str, str], ModelFamily] = {}

    def open_(family: str, shape: str) -> ModelFamily:
        if (family, shape) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{shape}")
            made[family, shape] = TINY_FAMILIES[family][shape](folder)
        found = made[family, shape]
        return found if family == "sd3" else found.sized(SIDE, SIDE)

    return open_


def config(family: Any) -> dict[str, Any]:
    if family.name == "sd3":
        return dict(family.transformer_config)
    return dict(family.settings.transformer)


def changed(family: Any, **values: Any) -> Any:
    """The family with other sizes of its transformer."""
    transformer = {**config(family), **values}
    other = family.sized(*family.image_size)
    if family.name == "sd3":
        other.transformer_config = transformer
    else:
        other.settings = dataclasses.replace(family.settings, transformer=transformer)
    return other


def state(family: Any, *, sources: int) -> tuple[Any, Any, Tokens]:
    """One state, its condition, and the tokens that the plan says it has."""
    given: dict[str, Any] = {}
    if sources:
        given["sources"] = [torch.randn(1, *family.latent_shape) for _ in range(sources)]
        if family.sees_source:
            given["images"] = [torch.rand(1, 3, *family.image_size) for _ in range(sources)]
    condition = family.condition(["a red circle"], **given)
    prompt = condition.tensors["prompt_embeds"].shape[1]
    if family.name == "qwen_image":  # small pictures are enlarged for the encoder
        prompt -= seen_tokens([family.image_size] * sources)
    if family.name == "qwen_image21":
        prompt -= sources * picture_tokens_21(family.image_size)
    tokens = family.layout.tokens_of(
        config(family),
        family.codec.factor,
        family.image_size,
        prompt,
        edits=family.takes_source,
        num_sources=sources,
        vision=16,
    )
    return torch.randn(1, *family.latent_shape), condition, tokens


def sizes(family: Any, backbone: nn.Module) -> Network:
    return measured(family.name, backbone, family.adapter_targets, edits=family.takes_source)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_operations_are_those_that_torch_counts(opened, name: str, shape: str) -> None:
    family = opened(name, shape)
    if shape == "plus":  # the few rows that sources' sigma 0 has in 2511 are not planned
        family = changed(family, zero_cond_t=False)
    backbone = awake(family)
    network = sizes(family, backbone)
    for sources in range(min(family.max_sources, 2) + 1):
        z, condition, tokens = state(family, sources=sources)
        field = family.field(backbone)  # may embed fixed texts, once
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            field(z, torch.tensor([0.5]), condition)
        planned, counted = network.forward_flops(tokens), counter.get_total_flops()
        if sources and name == "qwen_image21":  # text before pictures is not planned
            assert counted <= planned < 1.05 * counted
            continue
        assert planned == counted


@pytest.mark.parametrize(("name", "shape"), [("sd3", "stock"), ("flux2", "klein")])
@pytest.mark.parametrize("student", ["full", "lora"])
def test_a_backward_pass_is_what_torch_counts(opened, name: str, shape: str, student: str) -> None:
    family = opened(name, shape)
    backbone = awake(family)
    network, rank = sizes(family, backbone), None
    backbone.requires_grad_(True)
    if student == "lora":
        rank = 3
        add_student_adapter(family, backbone, rank, float(rank), seed=0)
    z, condition, tokens = state(family, sources=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.field(backbone)(z, torch.tensor([0.5]), condition).square().mean().backward()
    counted = counter.get_total_flops()
    # Attention that keeps its matrix, as here, takes 2 forward passes backward and not 2.5; and the
    # first modules need no gradient by their inputs.
    expected = network.training_flops(tokens, rank)
    kept = expected - (ATTENTION_BACKWARD - 2) * network.attention_flops(tokens)
    assert 0.95 * kept < counted <= kept
    assert network.training_flops(tokens, rank, recomputed=True) == pytest.approx(
        expected + network.forward_flops(tokens, rank)
    )


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_an_adapter_is_as_large_as_the_real_one(opened, name: str, shape: str) -> None:
    family = opened(name, shape)
    backbone = family.new_backbone(0)
    network = sizes(family, backbone)
    assert network.parameters == sum(p.numel() for p in backbone.parameters())
    for rank in (1, 5):
        fresh = family.new_backbone(0)
        factors = add_student_adapter(family, fresh, rank, float(rank), seed=0)
        assert network.adapter_parameters(rank) == sum(f.numel() for f in factors)
        groups = {group["kind"]: group["params"] for group in Muon(factors, 0.1).param_groups}
        matrices = sum(f.numel() for f in groups.get("matrix", []))
        assert network.adapter_matrices(rank) == matrices
    groups = {g["kind"]: g["params"] for g in Muon(backbone.parameters(), 0.1).param_groups}
    assert network.matrix_parameters == sum(p.numel() for p in groups["matrix"])


def kept_bytes(family: Any, backbone: nn.Module, z: Any, condition: Any) -> int:
    """Bytes of every storage that a forward pass keeps, the network's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*backbone.parameters(), *backbone.buffers())}
    found: dict[int, int] = {}
    alive = []  # else an address could come twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        family.field(backbone)(z, torch.tensor([0.5]), condition)
    return sum(found.values())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sd3", "stock"),
        ("sd3", "clean"),
        ("flux2", "klein"),
        ("qwen_image", "create"),
        ("qwen_image21", "both"),
        ("zimage", "plain"),
        ("zimage", "omni"),
    ],
)
@pytest.mark.parametrize(("dtype", "rank"), [("float32", None), ("float32", 16), ("bfloat16", 16)])
def test_kept_activations_are_near_those_of_a_real_network(
    opened, name: str, shape: str, dtype: str, rank: int | None
) -> None:
    family = changed(opened(name, shape), **WIDE[name])
    backbone = family.new_backbone(0)
    network = sizes(family, backbone)
    if rank is not None:
        backbone.to(getattr(torch, dtype))
        add_student_adapter(family, backbone, rank, float(rank), seed=0)
    z, condition, tokens = state(family, sources=0)
    found = kept_bytes(family, backbone, z, condition)
    num_bytes = 4 if dtype == "float32" else 2
    assert network.activation_bytes(tokens, num_bytes, rank) == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize(("name", "shape"), [("sd3", "stock"), ("zimage", "plain")])
def test_recomputing_keeps_one_input_per_block(opened, name: str, shape: str) -> None:
    depth = DEPTH.get(name, "num_layers")
    found, planned = [], []
    for layers in (3, 7):
        family = changed(opened(name, shape), **WIDE[name], **{depth: layers})
        backbone = family.new_backbone(0)
        network = sizes(family, backbone)
        add_student_adapter(family, backbone, 4, 4.0, seed=0)
        backbone.enable_gradient_checkpointing()
        z, condition, tokens = state(family, sources=0)
        found.append(kept_bytes(family, backbone, z, condition))
        planned.append(network.activation_bytes(tokens, 4, 4, recomputed=True))
    assert planned[1] - planned[0] == pytest.approx(found[1] - found[0], rel=0.05)
    assert planned[1] < network.activation_bytes(tokens, 4, 4) / 2


def test_a_module_of_no_known_stream_is_an_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sideways = nn.Linear(2, 2)

    with pytest.raises(WeightsError, match="'sideways'"):
        measured("zimage", Odd(), ("to_q",), edits=False)


def test_sizes_that_a_class_does_not_take_are_an_error() -> None:
    with pytest.raises(WeightsError, match="flux2 transformer.*num_floors"):
        network_of("flux2", {"num_floors": 3}, 16, edits=True)


# What the models' own cards say, rounded as they round.
CARDS = {
    "sd3.5-medium": 2.2e9,
    "sd3.5-large": 8.1e9,
    "z-image": 6.2e9,
    "flux2-klein-4b": 3.9e9,
    "qwen-image": 20.4e9,
    "qwen-image-edit": 20.4e9,
}


@pytest.mark.parametrize("name", list(published()["models"]))
def test_published_models_have_the_size_they_are_known_for(name: str) -> None:
    model = published()["models"][name]
    network = network_of(
        model["family"], model["transformer"], model["codec_factor"], edits=model["edits"]
    )
    if name in CARDS:
        assert network.parameters == pytest.approx(CARDS[name], rel=0.02)
    assert model["source"]
    if model["family"] == "sd3":
        wide = network_of("sd3", model["transformer"], 8, edits=True)
        channels = 17 * 4 * wide.attentions[0].width  # source, mask; patches of 2 x 2
        assert wide.parameters == network.parameters + channels


@pytest.mark.parametrize("name", list(published()["parts"]))
def test_frozen_parts_have_the_parameters_of_their_configuration(name: str) -> None:
    part = published()["parts"][name]
    library, _, cls = part["class"].partition(".")
    kind = getattr(importlib.import_module(library), cls)
    with torch.device("meta"):
        config = part["config"]
        module = kind(**config) if library == "diffusers" else kind(kind.config_class(**config))
    assert sum(p.numel() for p in module.parameters()) == part["parameters"]
    assert part["source"]


def test_weightless_means_weightless() -> None:
    """Twenty thousand million parameters are counted without room for them."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = published()["models"]["qwen-image"]
    network_of("qwen_image", model["transformer"], 8, edits=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(("name", "shape"), [("sd3", "stock"), ("flux2", "klein")])
def test_a_pass_calls_as_many_modules_as_are_counted(opened, name: str, shape: str) -> None:
    family = opened(name, shape)
    backbone = awake(family)
    network = sizes(family, backbone)
    called = []
    for rank in (None, 2):
        if rank is not None:
            add_student_adapter(family, backbone, rank, float(rank), 0)
        kinds = (nn.Linear, nn.Conv2d)
        modules = [module for module in backbone.modules() if isinstance(module, kinds)]
        hooks = [m.register_forward_pre_hook(lambda *_: called.append(1)) for m in modules]
        z, condition, _ = state(family, sources=0)
        called.clear()
        with torch.no_grad():
            family.field(backbone)(z, torch.tensor([0.5]), condition)
        for hook in hooks:
            hook.remove()
        assert len(called) + len(network.attentions) == network.calls(rank)
    assert network.block_modules < len(network.linears)
