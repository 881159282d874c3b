"""The closed vocabulary and the joint prompt embedding."""

from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, WORDS, clip_tokenizer, small_sd3, stock_sd3, t5_tokenizer
from tiny_stock import byte_tokenizer

from danceflow.models.frozen.part import held
from danceflow.models.frozen.reading import read_text, told
from danceflow.models.frozen.text import PromptEncoder, small_clip, word_tokenizer

SIZE = {"width": 16, "num_layers": 1, "num_heads": 2, "max_length": 8}


def small_encoder(width: int = 16, num_t5_tokens: int = 0) -> PromptEncoder:
    tokenizer = word_tokenizer(WORDS, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = small_clip(len(tokenizer), **SIZE)
    return PromptEncoder([(tokenizer, held(clip))], None, width, num_t5_tokens)


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


TOKENIZERS = {
    "words": lambda: word_tokenizer(WORDS, 8),
    "clip": lambda: clip_tokenizer(10, "!"),
    "t5": t5_tokenizer,
    "bytes": byte_tokenizer,
}


@pytest.mark.parametrize("window", [3, 5, 8])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_that_are_told_are_those_that_are_read(name: str, window: int) -> None:
    tokenizer = TOKENIZERS[name]()
    for prompt in ("a red circle", "  A red\n Circle ", "rédé 東京 the blue square", "red"):
        found = read_text(tokenizer, "text_encoder", prompt, window)
        cut = tokenizer(prompt, truncation=True, max_length=window).input_ids
        added = tokenizer.num_special_tokens_to_add()
        assert len(found.tokens) == len(cut) - added
        assert "".join(map(str, found.tokens)) in "".join(map(str, cut))
        whole = tokenizer(prompt, add_special_tokens=False).input_ids
        assert found.num_tokens == len(whole)
        assert found.num_read == len(found.tokens)
        assert (found.kept + found.dropped).split() == prompt.split() or found.dropped
        assert prompt.startswith(found.kept)
        assert prompt.rstrip().endswith(found.dropped)


def test_the_small_encoder_tells_its_window() -> None:
    prompt = "a red circle and a blue square beside the red square"
    (found,) = small_encoder().readings(prompt)
    assert (found.num_read, found.num_tokens) == (7, 11)  # and one for the end
    assert told([found]) == (
        "text_encoder reads 7 of its 11 tokens: kept 'a red circle and a blue square ', "
        "dropped 'beside the red square'"
    )


def test_each_encoder_of_stock_sd3_has_its_own_window(tmp_path: Path) -> None:
    family = stock_sd3(tmp_path)
    readings = {item.encoder: item for item in family.readings(PROMPTS[1])}
    assert list(readings) == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert readings["text_encoder"].dropped == readings["text_encoder_2"].dropped != ""
    assert readings["text_encoder_3"].dropped == ""
    assert told(readings.values()).startswith("text_encoder and text_encoder_2 read 8 of its ")
    long = "red " * 300
    windows = {item.encoder: item.num_read for item in family.readings(long)}
    assert windows == {"text_encoder": 8, "text_encoder_2": 8, "text_encoder_3": 255}
    assert told(family.readings(long)).count("dropped") == 2


def test_long_texts_are_shown_in_part() -> None:
    found = read_text(word_tokenizer(WORDS, 8), "x", "red " * 100 + "the end", 52)
    said = told([found])
    assert "kept '...red red" in said
    assert said.endswith("red the ...'")
    assert len(said) < 400
