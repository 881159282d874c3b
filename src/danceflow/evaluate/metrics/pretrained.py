"""Metrics that need a trained network: CLIPScore, LPIPS, FID and KID on Inception features.

Their weights lie on this machine, at the paths of ``evaluate.weights``. A metric without them is
left out, and the report says so; a path that leads nowhere is an error.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.evaluate.measurement import Evaluator, Measurement, by_rows, over_sizes
from danceflow.evaluate.task import Task
from danceflow.models.frozen.clip import load_clip

if TYPE_CHECKING:
    from danceflow.params.sections import WeightsParams

_METRICS = {"clip": "CLIPScore", "lpips": "LPIPS", "inception": "FID and KID on Inception features"}
_BATCH_SIZE = 32
_MIN_LPIPS_SIDE = 64
"""AlexNet halves a picture five times; smaller ones are enlarged before."""


def open_metrics(weights: "WeightsParams", root: Path) -> tuple[list[Evaluator], list[str]]:
    """Return the metrics whose weights are there, and a line for every one that is left out.

    Args:
        weights: the paths.
        root: the checkout, where relative ones start.

    Raises:
        WeightsError: a file is missing or holds something else.
    """
    paths: dict[str, str | None] = {
        "clip": weights.clip,
        "lpips": weights.lpips,
        "inception": weights.inception,
    }
    makers: dict[str, Callable[[Path], Evaluator]] = {
        "clip": ClipScore,
        "lpips": Lpips,
        "inception": InceptionDistances,
    }
    evaluators, left_out = [], []
    for name, path in paths.items():
        if path is None:
            left_out.append(
                f"{_METRICS[name]}: not measured, as evaluate.weights.{name} names no weights"
            )
        else:
            evaluators.append(_made(makers[name], root / path, f"evaluate.weights.{name}"))
    return evaluators, left_out


def _made(maker: Callable[[Path], Evaluator], path: Path, place: str) -> Evaluator:
    if not path.exists():
        raise WeightsError(f"{place}: {path}: there is no such file or folder")
    try:
        return maker(path)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{place}: {path}: cannot be used: {reason}") from error


class ClipScore:
    """How well a picture fits its prompt: 100 times the cosine of their CLIP features, at least 0.

    Hessel et al. 2021, "CLIPScore". For edits it says how well the result fits the instruction.
    """

    def __init__(self, folder: Path) -> None:
        """Load the model and its processor from a folder."""
        from torchmetrics.multimodal import CLIPScore

        self.metric = CLIPScore(model_name_or_path=lambda: load_clip(folder))

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield ``clip_score``, from 0 to 100."""
        scores = []
        for row, image in zip(task.rows, images, strict=True):
            self.metric.reset()
            self.metric.update((image * 255).round().to(torch.uint8), row.prompt)
            scores.append(float(self.metric.compute()))
        yield by_rows(task, "clip_score", scores)


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


class InceptionDistances:
    """FID and KID between a field's images and the targets, on Inception features.

    The file is TorchScript that maps uint8 images [B, 3, H, W] to features [B, N], such as the
    ``inception-2015-12-05.pt`` that goes round with StyleGAN's metrics.
    """

    def __init__(self, path: Path) -> None:
        """Load the network."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = _Features(torch.jit.load(str(path), map_location="cpu"))

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield ``fid_inception`` and ``kid_inception``; both need two images at least."""
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        count = len(images)
        if count < 2:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features")
            metrics: dict[str, Any] = {
                "fid_inception": FrechetInceptionDistance(feature=self.network),
                "kid_inception": KernelInceptionDistance(
                    feature=self.network, subsets=1, subset_size=count
                ),
            }
        for name, metric in metrics.items():
            for part, images_B3HW in task.of_sizes(images):
                for target, answers in zip(
                    part.target.split(_BATCH_SIZE), images_B3HW.split(_BATCH_SIZE), strict=True
                ):
                    metric.update(target, real=True)
                    metric.update(answers, real=False)
            value = metric.compute()
            yield Measurement(name, float(value[0] if isinstance(value, tuple) else value))


class _Features(nn.Module):
    """Lets a network of uint8 images take images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            features = self._run(probe)
        if features.ndim != 2:
            raise ValueError(f"it gives {features.ndim} axes, not images by features")
        self.num_features = int(features.shape[1])

    def _run(self, images: Tensor) -> Tensor:
        try:
            features: Tensor = self.network(images, return_features=True)
        except RuntimeError:  # a network without that argument gives features anyway
            features = self.network(images)
        return features

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the features, [B, N] float64."""
        return self._run((images_B3HW * 255).round().to(torch.uint8)).double()
