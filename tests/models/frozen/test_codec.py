"""Pixels as latents; the autoencoder is tested against the stock pipeline."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import stock_pipeline

from danceflow.errors import WeightsError
from danceflow.models.frozen.codec import PixelCodec, load_codec, load_vae
from danceflow.models.weights import WEIGHTS_FILE


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_pixels_go_there_and_back() -> None:
    codec = PixelCodec()
    latents = codec.encode(images())
    assert -1 <= latents.min() < -0.9
    assert 0.9 < latents.max() <= 1
    torch.testing.assert_close(codec.decode(latents), images(), rtol=0, atol=1e-6)


def test_what_leaves_the_range_is_cut() -> None:
    assert PixelCodec().decode(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]


def test_a_folder_without_an_autoencoder_is_in_pixels(tmp_path) -> None:
    codec = PixelCodec()
    assert codec.to("cpu") is codec
    codec.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert isinstance(load_codec(tmp_path), PixelCodec)


def test_an_autoencoder_without_a_shift_has_none(tmp_path) -> None:
    vae = stock_pipeline(with_t5=False).vae
    vae.register_to_config(shift_factor=None)
    vae.save_pretrained(tmp_path / "vae")
    codec = load_vae(tmp_path)
    assert codec.shift == 0.0
    assert codec.encode(images()).isfinite().all()


def test_each_half_of_an_autoencoder_is_read_when_it_is_asked(tmp_path) -> None:
    vae = stock_pipeline(with_t5=False).vae
    vae.save_pretrained(tmp_path / "vae")
    codec = load_vae(tmp_path)
    assert codec.halves.is_read == (False, False)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = vae.decode(latents / codec.scale + codec.shift).sample
        encoded = (vae.encode(images() * 2 - 1).latent_dist.mean - codec.shift) * codec.scale
    torch.testing.assert_close(codec.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))
    assert codec.halves.is_read == (False, True)
    assert not list(codec.halves.decoder.encoder.parameters())
    torch.testing.assert_close(codec.encode(images()), encoded)
    assert codec.halves.is_read == (True, True)
    for half in (codec.halves.encoder, codec.halves.decoder):
        assert not half.training
        assert not any(p.requires_grad for p in half.parameters())
    codec.release()
    assert codec.halves.is_read == (False, True)


def test_a_half_whose_weights_are_not_there_is_told(tmp_path) -> None:
    vae = stock_pipeline(with_t5=False).vae
    state = {name: v for name, v in vae.state_dict().items() if not name.startswith("decoder.mid")}
    vae.save_pretrained(tmp_path / "vae")
    save_file(state, tmp_path / "vae" / WEIGHTS_FILE)
    codec = load_vae(tmp_path)
    assert codec.encode(images()).isfinite().all()
    with pytest.raises(WeightsError, match=r"vae: .* do not match .*decoder\.mid_block"):
        codec.decode(torch.zeros(1, 4, 4, 4))
