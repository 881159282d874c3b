"""Teacher training: exact resume, captions dropped at the asked rate, errors that keep the past."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import PROMPTS, small_sd3

from danceflow.errors import TrainingError
from danceflow.fields import Condition, normal, seed_for
from danceflow.models.adapters.lora import add_student_adapter
from danceflow.params.sections import TeacherParams
from danceflow.train.state import load_checkpoint
from danceflow.train.teachers import finetune as module
from danceflow.train.teachers.finetune import finetune

CONFIG = {
    "num_updates": 7,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "warmup": 2,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "ema_decay": 0.5,
    "caption_dropout": 0.3,
    "sigma_shift": 2.0,
    "sigma_power": 0.0,
}


@pytest.fixture(scope="module")
def family():
    return small_sd3()


class Batches:
    """Batches that are a function of the step; can stop, or spoil, one of them."""

    def __init__(self, family, stop_at: int | None = None, spoil_at: int | None = None) -> None:
        self.family, self.stop_at, self.spoil_at = family, stop_at, spoil_at
        self.text = family.condition(PROMPTS)

    def batch(self, step: int, samples: range):
        batch_size = len(samples)
        if step == self.stop_at:
            raise KeyboardInterrupt
        seeds = [seed_for(0, "test", step, index) for index in range(2 * batch_size)]
        noise = normal(self.family.latent_shape, seeds)
        clean, source = noise[:batch_size], noise[batch_size:]
        if step == self.spoil_at:
            clean = clean * float("nan")
        text = self.text.select(torch.arange(batch_size) % len(PROMPTS)).tensors
        return clean, Condition({**text, "source": source})


def train(family, work, batches=None, **changes):
    backbone = family.new_backbone(0)
    finetune(
        family,
        backbone,
        batches or Batches(family),
        SimpleNamespace(**{**CONFIG, **changes}),
        seed=0,
        work=work,
        checkpoint_every=2,
    )
    return backbone


def same(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def rows(work) -> list[dict]:
    """The training curve without its clock."""
    lines = (work / "curve.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_what_is_frozen_is_not_trained(family, tmp_path) -> None:
    backbone = family.new_backbone(0)
    before = copy.deepcopy(backbone.state_dict())
    factors = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    finetune(family, backbone, Batches(family), SimpleNamespace(**CONFIG), seed=0, work=tmp_path)
    assert any(bool(factor.any()) for factor in factors[1::2]), "B starts at zero and must move"
    after = {name.replace(".base_layer", ""): v for name, v in backbone.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_loss_of_sigma_power_two_is_the_error_of_the_clean_image(family, monkeypatch) -> None:
    clean, condition = Batches(family).batch(0, range(4))
    config = TeacherParams.model_construct(**CONFIG | {"sigma_power": 2.0})
    seen = {}

    class Field:
        def __call__(self, z, sigma, cond):
            seen["sigma"], seen["z"] = sigma[:, None, None, None], z
            return torch.full_like(z, 0.25)

    loss = module._loss(family, Field(), clean, condition, config, list(range(4)))
    sigma = seen["sigma"]
    assert bool((sigma > family.sigma_min).all())
    predicted = seen["z"] - sigma * 0.25
    assert float(loss) == pytest.approx(float((predicted - clean).square().mean()), rel=1e-5)


def test_the_state_of_a_sample_does_not_depend_on_the_batch_size(family, tmp_path) -> None:
    """Noise, sigma, and whether the caption is dropped, are the sample's own."""
    seen: list[tuple[torch.Tensor, ...]] = []

    class Watched:
        """The family, whose field notes what it is asked."""

        def __getattr__(self, name: str):
            return getattr(family, name)

        def field(self, backbone):
            real = family.field(backbone)

            def noting(z, sigma, condition):
                seen.append((z, sigma, *(condition.tensors[n] for n in sorted(condition.tensors))))
                return real(z, sigma, condition)

            return noting

    class Same(Batches):
        """A batch whose first samples are those of a smaller batch."""

        def batch(self, step: int, samples: range):
            clean, condition = super().batch(step, range(8))
            rows = torch.tensor(list(samples))
            return clean[rows], condition.select(rows)

    options = {"num_updates": 3, "learning_rate": 0.0, "caption_dropout": 0.5}
    for size in (2, 5, 8):
        finetune(
            Watched(),
            family.new_backbone(0),
            Same(family),
            SimpleNamespace(**{**CONFIG, **options, "batch_size": size}),
            seed=0,
            work=tmp_path / str(size),
        )
    whole = seen[6:]
    for start, size in ((0, 2), (3, 5)):
        for step in range(3):
            for few, many in zip(seen[start + step], whole[step], strict=True):
                assert torch.equal(few, many[:size])
    assert not torch.equal(whole[0][1], whole[1][1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_computes_where_the_network_is(tmp_path, monkeypatch, optimizer: str) -> None:
    """On a device that refuses tensors of another one, and holds no numbers to be read."""
    monkeypatch.setattr(module, "float", lambda _: 0.5, raising=False)
    monkeypatch.setattr(module, "save_checkpoint", lambda path, content: None)
    family = small_sd3()
    batches = Batches(family)  # on the CPU
    family.to("meta")
    backbone = family.new_backbone(0).to("meta")
    config = SimpleNamespace(**{**CONFIG, "optimizer": optimizer})
    finetune(family, backbone, batches, config, seed=0, work=tmp_path)
    assert {param.device.type for param in backbone.parameters()} == {"meta"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_training_is_the_uninterrupted_one(
    family, tmp_path, monkeypatch, optimizer: str
) -> None:
    monkeypatch.setattr(module, "_LOG_EVERY", 3)
    whole = train(family, tmp_path / "whole", optimizer=optimizer)
    for stop_at in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            train(family, tmp_path / "parts", Batches(family, stop_at=stop_at), optimizer=optimizer)
        checkpoint = load_checkpoint(tmp_path / "parts" / "checkpoint.safetensors")
        assert checkpoint is not None
        assert checkpoint["step"] == 2 * (stop_at // 2)
    parts = train(family, tmp_path / "parts", optimizer=optimizer)
    assert same(whole, parts)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row["step"] for row in rows(tmp_path / "parts")] == [3, 6, 7]


def test_a_finished_training_is_not_repeated(family, tmp_path) -> None:
    first = train(family, tmp_path)
    curve = rows(tmp_path)
    assert same(first, train(family, tmp_path, Batches(family, stop_at=0)))
    assert rows(tmp_path) == curve


def test_it_leaves_the_frozen_average(family, tmp_path) -> None:
    backbone = train(family, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint is not None
    average = checkpoint["ema"]["values"]
    live = checkpoint["backbone"]
    for name, param in backbone.named_parameters():
        assert torch.equal(param, average[name])
    assert any(not torch.equal(average[name], live[name]) for name in average)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_seed_decides_everything(family, tmp_path) -> None:
    torch.manual_seed(5)
    one = train(family, tmp_path / "one")
    torch.manual_seed(6)
    assert same(one, train(family, tmp_path / "other"))


@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_it_learns(prediction: str, tmp_path) -> None:
    family = small_sd3(prediction)

    class OneImage(Batches):
        def batch(self, step: int, samples: range):
            _, condition = super().batch(step, samples)
            return torch.full((len(samples), *family.latent_shape), 0.5), condition

    losses = []
    for num_updates in (1, 25):
        work = tmp_path / str(num_updates)
        changes = {"num_updates": num_updates, "learning_rate": 1e-2, "batch_size": 8}
        train(family, work, OneImage(family), **changes)
        losses.append(rows(work)[-1]["loss"])
    assert losses[1] < 0.75 * losses[0]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(family, tmp_path) -> None:
    with pytest.raises(TrainingError, match="update 5: the loss is nan; lower the learning rate"):
        train(family, tmp_path, Batches(family, spoil_at=5))
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint is not None
    assert checkpoint["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["backbone"].values())
    assert same(train(family, tmp_path), train(family, tmp_path / "whole"))


def test_a_damaged_checkpoint_is_told_and_trained_again(family, tmp_path, caplog) -> None:
    whole = train(family, tmp_path / "whole")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    assert same(train(family, tmp_path), whole)
    assert "the checkpoint is damaged" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_captions_are_dropped_at_the_asked_rate(family, tmp_path, monkeypatch, share) -> None:
    shown = []
    field_of = family.field

    def watching(backbone):
        field = field_of(backbone)

        def watched(z, sigma, condition):
            shown.append(condition)
            return field(z, sigma, condition)

        return watched

    monkeypatch.setattr(family, "field", watching)
    train(family, tmp_path, caption_dropout=share, batch_size=32, num_updates=10)
    empty = family.condition([""]).tensors["pooled"]
    dropped = torch.cat([(c.tensors["pooled"] == empty).all(dim=1) for c in shown])
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.08)
    batches = Batches(family)
    for step, condition in enumerate(shown):
        _, given = batches.batch(step, range(32))
        assert torch.equal(condition.tensors["source"], given.tensors["source"])
        kept = ~dropped[32 * step : 32 * (step + 1)]
        for name in ("pooled", "prompt_embeds"):
            assert torch.equal(condition.tensors[name][kept], given.tensors[name][kept])


def test_a_section_of_the_parameters_is_a_configuration() -> None:
    assert CONFIG.keys() <= TeacherParams.model_fields.keys()
