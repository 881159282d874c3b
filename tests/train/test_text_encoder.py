"""The text encoder learns to read from training prompts alone."""

import copy
from random import Random

import pytest
import torch

from danceflow.models.text import small_clip, word_tokenizer
from danceflow.scenes.prompts import CATEGORIES, Request, draw_sample, vocabulary
from danceflow.train import text_encoder as module
from danceflow.train.text_encoder import (
    _LABELS,
    pretrain_on_prompts,
    pretrain_text_encoder,
    request_labels,
    words_in,
)

ALL_CATEGORIES = [name for group in CATEGORIES.values() for name in group]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(vocabulary(), 16)


@pytest.fixture
def encoder(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small_clip(len(tokenizer), width=16, num_layers=1, num_heads=2, max_length=16)


def train(tokenizer, encoder, **changes) -> float:
    options = {"num_updates": 4, "batch_size": 8, "learning_rate": 1e-3, "seed": 0}
    options |= {"num_samples": 60, "num_validation": 60}
    return pretrain_text_encoder(tokenizer, encoder, **{**options, **changes})


def test_labels_name_every_field_of_a_request() -> None:
    request = Request("add", ("red", "ring"), ("blue", "cross"), relation="above")
    values = [names[i] for names, i in zip(_LABELS.values(), request_labels(request), strict=True)]
    assert values == ["add", "red", "ring", "blue", "cross", 1, "above", None, None, None]


def test_every_request_has_labels_and_they_tell_requests_apart() -> None:
    by_labels = {}
    for index in range(400):
        category = ALL_CATEGORIES[index % len(ALL_CATEGORIES)]
        request = draw_sample(Random(index), category, "train").request
        assert by_labels.setdefault(tuple(request_labels(request)), request) == request
    assert len(by_labels) > 200


def test_training_is_a_function_of_the_seed_and_freezes_the_encoder(tokenizer, encoder) -> None:
    other = copy.deepcopy(encoder)
    before = copy.deepcopy(encoder.state_dict())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    accuracy = train(tokenizer, encoder)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert train(tokenizer, other) == accuracy
    assert 0.0 <= accuracy <= 1.0
    after = encoder.state_dict()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in after.items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_it_trains_on_training_prompts_and_is_measured_on_others(
    tokenizer, encoder, monkeypatch
) -> None:
    drawn = []

    def watched(rng, category, split, variant="standard"):
        drawn.append((split, variant))
        return draw_sample(rng, category, split, variant)

    monkeypatch.setattr(module, "draw_sample", watched)
    train(tokenizer, encoder)
    assert drawn[:60] == [("train", "standard")] * 60
    assert set(drawn[60:]) == {("validation", "standard")}


def test_it_learns_to_read(tokenizer, encoder, monkeypatch) -> None:
    # One field is enough to see it learn in a moment: which operation is asked for.
    monkeypatch.setattr(module, "_LABELS", {"operation": _LABELS["operation"]})
    monkeypatch.setattr(
        module, "request_labels", lambda r: [_LABELS["operation"].index(r.operation)]
    )
    untrained = train(tokenizer, copy.deepcopy(encoder), num_updates=1)
    trained = train(
        tokenizer, encoder, num_updates=80, batch_size=32, learning_rate=1e-2, num_samples=300
    )
    assert trained > 0.8 > untrained


def test_it_learns_to_read_the_words_of_any_prompts() -> None:
    prompts = ["a three", "a seven", "The digit three", "rotate the image", "turn the digit"]
    words = words_in(prompts)
    assert words == ("a", "digit", "image", "rotate", "seven", "the", "three", "turn")
    tokenizer = word_tokenizer(words, 6)
    read = []
    for num_updates in (1, 150):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = small_clip(len(tokenizer), width=16, num_layers=1, num_heads=2, max_length=6)
        options = {"num_updates": num_updates, "batch_size": 8, "learning_rate": 0.01, "seed": 0}
        read.append(pretrain_on_prompts(tokenizer, encoder, prompts, **options))
        assert not any(param.requires_grad for param in encoder.parameters())
    assert read[0] < 1
    assert read[1] == 1


def test_the_prompts_of_an_update_do_not_depend_on_the_batch_size(
    tokenizer, encoder, monkeypatch
) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    for size in (3, 8):
        noted = seen.setdefault(size, [])
        hook = encoder.register_forward_pre_hook(lambda _, args, n=noted: n.append(args[0]))
        train(tokenizer, encoder, batch_size=size)
        hook.remove()
        encoder.requires_grad_(True)
    for few, many in zip(seen[3][:4], seen[8][:4], strict=True):
        assert torch.equal(few, many[:3])


@pytest.mark.parametrize("prompts", [None, ("a red ring", "a blue cross", "two rings")])
def test_it_computes_where_the_encoder_is(tokenizer, encoder, monkeypatch, prompts) -> None:
    """On a device that refuses tensors of another one, and holds no numbers to be read."""
    monkeypatch.setattr(module, "float", lambda _: 0.5, raising=False)
    encoder.to("meta")
    seen: set[str] = set()
    encoder.register_forward_pre_hook(lambda _, args: seen.add(args[0].device.type))
    if prompts is None:
        train(tokenizer, encoder)
    else:
        options = {"num_updates": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 0}
        pretrain_on_prompts(tokenizer, encoder, prompts, **options)
    assert {param.device.type for param in encoder.parameters()} == seen == {"meta"}
