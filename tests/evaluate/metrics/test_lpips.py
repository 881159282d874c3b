"""LPIPS: nothing between equal images, torchmetrics' figures with the same network."""

from pathlib import Path

import pytest
import torch
from torch import nn

from danceflow.evaluate.metrics.lpips import Lpips
from danceflow.fields import normal


def metrics(evaluator, task, images) -> dict[str, float]:
    return {item.name: item.value for item in evaluator(task, images)}


def test_lpips_is_zero_for_equal_images_and_grows_with_damage(tasks, alexnet: Path) -> None:
    task, lpips = tasks["global_edit"], Lpips(alexnet)
    found = []
    for level in (0.0, 0.05, 0.3):
        noise = level * normal(task.target.shape[1:], range(task.num_rows))
        found.append(metrics(lpips, task, (task.target + noise).clamp(0, 1))["lpips"])
    assert found[0] == 0
    assert 0 < found[1] < found[2]
    one, other = task.target[:1], 1 - task.target[:1]
    assert torch.equal(lpips.distances(one, other), lpips.distances(other, one))


def torchvision_features() -> nn.Sequential:
    """AlexNet's ``features`` as torchvision builds them, with its last pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


@pytest.mark.parametrize("scale", [1.0, 0.02], ids=["usual", "faint"])
def test_lpips_is_torchmetrics_with_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    from torchmetrics.functional.image import lpips as reference

    with torch.random.fork_rng():
        torch.manual_seed(1)
        features = torchvision_features()
    with torch.no_grad():
        for param in features.parameters():
            param *= scale
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: features)
    theirs = reference._LPIPS(pretrained=True, net="alex", pnet_rand=True)
    one, other = (normal((3, 72, 96), seeds).sigmoid() for seeds in ([1, 2, 3], [4, 5, 6]))
    other[1] = one[1]
    expected = theirs(one, other, normalize=True).flatten()
    found = Lpips(tmp_path / "alexnet.pth").distances(one, other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert found[1] == 0
    assert min(found[0], found[2]) > 1e-3
