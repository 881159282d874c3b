"""How pictures are put into a page: as they are, or as small as it takes to keep the page light."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from danceflow.pictures import data_uri, png_bytes


@dataclass(frozen=True)
class Look:
    """A way to write pictures.

    Attributes:
        side: their longest side in pixels at most; ``None``: as it is.
        quality: of WebP, from 1 to 100; ``None``: PNG, which loses nothing.
    """

    side: int | None = None
    quality: int | None = None

    @property
    def is_exact(self) -> bool:
        """Whether pictures are shown bit for bit."""
        return self.side is None and self.quality is None

    def uri(self, picture: Image.Image) -> str:
        """Return a picture as an address that holds it."""
        if self.side is not None and max(picture.size) > self.side:
            picture = picture.copy()
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        if self.quality is None:
            return data_uri(png_bytes(picture, 9))
        buffer = io.BytesIO()
        picture.save(buffer, format="WEBP", quality=self.quality)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


LOOKS = (
    Look(),
    Look(208, 80),
    Look(156, 75),
    Look(104, 70),
    Look(104, 40),
    Look(72, 30),
    Look(48, 20),
)
"""From the best to the lightest."""
