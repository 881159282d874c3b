"""The closed vocabulary and the joint prompt embedding."""

import torch
from tiny_models import WORDS, small_sd3

from danceflow.models.text import PromptEncoder, small_clip, word_tokenizer

SIZE = {"width": 16, "num_layers": 1, "num_heads": 2, "max_length": 8}


def small_encoder(width: int = 16, num_t5_tokens: int = 0) -> PromptEncoder:
    tokenizer = word_tokenizer(WORDS, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = small_clip(len(tokenizer), **SIZE)
    return PromptEncoder([(tokenizer, clip)], None, width, num_t5_tokens)


def test_words_have_the_ids_of_their_order() -> None:
    tokenizer = word_tokenizer(WORDS, 6)
    ids = tokenizer("A red   Dragon", padding="max_length").input_ids
    first = 3  # after padding, end and unknown
    assert ids == [first, first + WORDS.index("red"), 2, 1, 0, 0]


def test_unknown_words_are_named_in_order() -> None:
    encoder = small_encoder()
    assert encoder.unknown_words("a Red circle") == []
    assert encoder.unknown_words("a purple circle, squared") == ["purple", "circle,", "squared"]


def test_a_long_prompt_is_cut_to_the_window() -> None:
    encoder = small_encoder()
    embeds, pooled = encoder(["red " * 50])
    assert embeds.shape == (1, encoder.max_length, 16)
    assert pooled.shape == (1, 16)
    assert embeds.isfinite().all()


def test_features_are_padded_to_the_joint_width() -> None:
    embeds, _ = small_encoder(width=24)(["a red circle"])
    narrow, _ = small_encoder()(["a red circle"])
    assert torch.equal(embeds[..., :16], narrow)
    assert not embeds[..., 16:].any()


def test_a_missing_t5_leaves_zeros_where_it_would_be() -> None:
    embeds, _ = small_encoder(num_t5_tokens=5)(["a red circle"])
    assert embeds.shape == (1, 13, 16)
    assert not embeds[:, 8:].any()


def test_encoders_are_frozen() -> None:
    encoder = small_encoder()
    assert encoder.to("cpu") is encoder
    clip = encoder.clips[0][1]
    assert not clip.training
    assert not any(p.requires_grad for p in clip.parameters())
    embeds, pooled = encoder(["a red circle"])
    assert not embeds.requires_grad
    assert not pooled.requires_grad


def test_a_small_family_is_a_function_of_its_seed_and_leaves_chance_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = small_sd3(), small_sd3()
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (f.condition(["a red circle"]).tensors for f in (one, other))
    assert torch.equal(first["prompt_embeds"], second["prompt_embeds"])
