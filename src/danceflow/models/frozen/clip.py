"""A CLIP model from a folder, as a metric needs it: pictures and texts to features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.weights import load_pretrained


class ClipFeatures(nn.Module):
    """The features of a ``transformers.CLIPModel`` as plain tensors."""

    def __init__(self, model: Any) -> None:
        """Take a loaded model and freeze it."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.config = model.config

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the features of pictures, [B, N]."""
        features: Tensor = self.model.get_image_features(pixel_values).pooler_output
        return features

    @torch.no_grad()
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the features of texts, [B, N]."""
        features: Tensor = self.model.get_text_features(input_ids, attention_mask).pooler_output
        return features


def load_clip(folder: Path) -> tuple[ClipFeatures, Any]:
    """Return the model and the processor of a folder.

    Raises:
        WeightsError: if one of them is missing or cannot be read.
    """
    from transformers import CLIPModel, CLIPProcessor

    model = load_pretrained(CLIPModel, folder, dtype=torch.float32)
    try:
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"{folder}: the processor cannot be read: {error}") from error
    return ClipFeatures(model), processor
