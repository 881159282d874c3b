"""The text encoder learns to read what its world asks about, from prompts alone."""

import copy

import pytest
import torch

from danceflow.models.frozen.text import small_clip, word_tokenizer
from danceflow.scenes.prompts import vocabulary
from danceflow.train.teachers import text_encoder as module
from danceflow.train.teachers.text_encoder import pretrain_text_encoder
from danceflow.worlds import scenes
from danceflow.worlds.rows import Rows
from danceflow.worlds.scenes import Scenes
from danceflow.worlds.world import Lesson, Reading


def scene_reading(num_read: int = 60) -> Reading:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_NUM_READ", num_read)
        patch.setattr(scenes, "_NUM_CHECKED", 60)
        return Scenes().reading((), seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(vocabulary(), 16)


@pytest.fixture
def encoder(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small_clip(len(tokenizer), width=16, num_layers=1, num_heads=2, max_length=16)


def train(tokenizer, encoder, reading=None, **changes) -> float:
    options = {"num_updates": 4, "batch_size": 8, "learning_rate": 1e-3, "seed": 0}
    reading = scene_reading() if reading is None else reading
    return pretrain_text_encoder(tokenizer, encoder, reading, **{**options, **changes})


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


def test_it_learns_to_read(tokenizer, encoder) -> None:
    # One field is enough to see it learn in a moment: which operation is asked for.
    whole = scene_reading(300)
    first = [
        Lesson(lesson.prompts, lesson.labels[:, :1]) for lesson in (whole.train, whole.validation)
    ]
    reading = Reading(whole.num_classes[:1], *first)
    untrained = train(tokenizer, copy.deepcopy(encoder), reading, num_updates=1)
    options = {"num_updates": 80, "batch_size": 32, "learning_rate": 1e-2}
    assert train(tokenizer, encoder, reading, **options) > 0.8 > untrained


def test_it_learns_to_read_the_words_of_any_prompts() -> None:
    prompts = ["a three", "a seven", "The digit three", "rotate the image", "turn the digit"]
    words = Rows().words(prompts)
    assert words == ("a", "digit", "image", "rotate", "seven", "the", "three", "turn")
    tokenizer, reading = word_tokenizer(words, 6), Rows().reading(prompts, 0)
    read = []
    for num_updates in (1, 150):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = small_clip(len(tokenizer), width=16, num_layers=1, num_heads=2, max_length=6)
        options = {"num_updates": num_updates, "batch_size": 8, "learning_rate": 0.01, "seed": 0}
        read.append(pretrain_text_encoder(tokenizer, encoder, reading, **options))
        assert not any(param.requires_grad for param in encoder.parameters())
    assert read[0] < 1
    assert read[1] == 1


def test_the_prompts_of_an_update_do_not_depend_on_the_batch_size(tokenizer, encoder) -> None:
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
    reading = None if prompts is None else Rows().reading(prompts, 0)
    train(tokenizer, encoder, reading, num_updates=2, batch_size=2)
    assert {param.device.type for param in encoder.parameters()} == seen == {"meta"}
