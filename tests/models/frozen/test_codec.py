"""Pixels as latents; the autoencoder is tested against the stock pipeline."""

import torch
from tiny_models import stock_pipeline

from danceflow.models.frozen.codec import PixelCodec, VaeCodec, load_codec


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


def test_an_autoencoder_without_a_shift_has_none() -> None:
    vae = stock_pipeline(with_t5=False).vae
    vae.register_to_config(shift_factor=None)
    codec = VaeCodec(vae)
    assert codec.shift == 0.0
    assert codec.encode(images()).isfinite().all()


def test_an_autoencoder_is_frozen() -> None:
    codec = VaeCodec(stock_pipeline(with_t5=False).vae)
    assert not any(p.requires_grad for p in codec.vae.parameters())
    assert not codec.vae.training
