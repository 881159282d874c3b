"""Pictures are whole where they may be, and lighter step by step where the page must be."""

import base64
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from danceflow.report.page.looks import LOOKS


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{picture.format.lower()};base64"
    return picture


def test_the_first_look_is_exact_and_every_next_one_is_lighter() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    uris = [look.uri(picture) for look in LOOKS]
    assert (np.asarray(opened(uris[0])) == noise).all()
    assert [look.is_exact for look in LOOKS] == [True, *[False] * (len(LOOKS) - 1)]
    assert all(len(one) > len(other) for one, other in pairwise(uris))
    assert all(
        max(opened(uri).size) == look.side
        for look, uri in zip(LOOKS, uris, strict=True)
        if look.side
    )
    assert picture.size == (256, 256)


def test_small_pictures_are_not_made_larger() -> None:
    assert opened(LOOKS[1].uri(Image.new("RGB", (32, 16)))).size == (32, 16)
