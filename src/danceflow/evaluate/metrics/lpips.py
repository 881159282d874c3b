"""How far a picture looks from its target: LPIPS, with a network by path."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from danceflow.evaluate.measurement import Measurement, by_rows, over_sizes
from danceflow.evaluate.task import Task

_BATCH_SIZE = 32
_MIN_LPIPS_SIDE = 64
"""AlexNet halves a picture five times; smaller ones are enlarged before."""


class Lpips:
    """Perceptual distance to the target: LPIPS with AlexNet, of Zhang et al. 2018.

    torchmetrics' own needs torchvision for the network. Here the network is built from its state
    dict, and the linear weights are those that torchmetrics brings along.
    """

    def __init__(self, path: Path) -> None:
        """Load AlexNet's convolutions."""
        self.layers = _alexnet()
        found = {
            name.removeprefix("features."): value
            for name, value in _state_dict(path).items()
            if name.startswith("features.")
        }
        self.layers.load_state_dict(found)
        self.layers.eval().requires_grad_(False)
        self.linear = [value.flatten() for value in _lpips_weights()]

    def distances(self, images_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        """Return the distance of every pair, [B]."""
        total = torch.zeros(len(images_B3HW))
        pairs = zip(self._features(images_B3HW), self._features(target_B3HW), strict=True)
        for weight, (one, other) in zip(self.linear, pairs, strict=True):
            total += ((one - other).square() * weight[:, None, None]).sum(1).mean((1, 2))
        return total

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        spread = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        hidden = images.float()
        if (side := min(hidden.shape[-2:])) < _MIN_LPIPS_SIDE:
            factor = -(-_MIN_LPIPS_SIDE // side)
            hidden = nn.functional.interpolate(hidden, scale_factor=factor, mode="bilinear")
        hidden = (hidden * 2 - 1 - mean) / spread
        for layer in self.layers:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                norm = (1e-8 + hidden.square().sum(1, keepdim=True)).sqrt()
                yield hidden / norm

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield ``lpips`` between images and targets; 0 is equal."""
        return over_sizes(self._rows, task, images)

    def _rows(self, task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
        parts = zip(images_B3HW.split(_BATCH_SIZE), task.target.split(_BATCH_SIZE), strict=True)
        found = torch.cat([self.distances(one, other) for one, other in parts])
        yield by_rows(task, "lpips", found.tolist())


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Return a state dict saved by torch; no code in the file is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, IndexError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"it is no state dict ({error})") from error
    if not isinstance(state, dict):
        raise ValueError("it is no state dict")
    return state


def _alexnet() -> nn.Sequential:
    """Return the convolutions of AlexNet with torchvision's names."""
    sizes = (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    )
    layers: list[nn.Module] = []
    for number, (inputs, outputs, kernel, stride, padding) in enumerate(sizes):
        if number in (1, 2):
            layers.append(nn.MaxPool2d(3, 2))
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _lpips_weights() -> list[Tensor]:
    """Return the linear weights that torchmetrics brings along, one tensor per layer."""
    import torchmetrics.functional.image as functional

    folder = Path(str(functional.__file__)).with_name("lpips_models")
    state = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"] for number in range(5)]
