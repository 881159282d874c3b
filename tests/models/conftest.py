import pytest
from torch import nn

Moves = list[tuple[nn.Module, str]]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    """Note which networks are moved where; they stay where they are, so no GPU is needed."""
    noted: Moves = []

    def to(network: nn.Module, device: object, *_dtype: object, **_options: object) -> nn.Module:
        noted.append((network, str(device)))
        return network

    monkeypatch.setattr(nn.Module, "to", to)
    return noted
