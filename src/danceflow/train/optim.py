"""Optimisers and the learning-rate schedule, as plain functions of a parameter list."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import unknown_name
from danceflow.ops.group import Group

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MUCH_WIDER = 1.5
"""Times as wide as high: from here on 4M^2K + 14M^3 are less than 10M^2K + 5M^3."""
_MATCHED_RMS = 0.2
FINAL_FACTORS = {"cosine": 0.02, "constant": 1.0}
"""The factor of the learning rate at the end of a training, by the name of its schedule."""


def orthogonalise(matrices_NMK: Tensor) -> Tensor:
    """Return matrices with the singular vectors of the given ones and singular values near 1.

    Five quintic Newton-Schulz iterations X <- PX with P = aI + bA + cA^2, A = XX^T and the
    coefficients of Jordan et al. (2024), in the dtype of the input; they bring singular values into
    about [0.7, 1.2].

    P and A commute, so that the next A is APP: of matrices that are much wider than high, the
    factors of several iterations are multiplied before they meet X. What rounding adds to a
    vanishing singular value of A grows twelvefold in each of these, so A is taken from X again
    after two.

    Args:
        matrices_NMK: [N, M, K] float32.
    """
    wide = matrices_NMK.shape[-2] <= matrices_NMK.shape[-1]
    x = matrices_NMK if wide else matrices_NMK.mT
    height, width = x.shape[-2:]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for num_joined in (2, 3) if width > _MUCH_WIDER * height else (1, 1, 1, 1, 1):
        gram = x @ x.mT
        product = factor = _factor(gram)
        for _ in range(num_joined - 1):
            gram = gram @ factor @ factor
            factor = _factor(gram)
            product = factor @ product
        x = product @ x
    result: Tensor = x if wide else x.mT
    return result


def _factor(gram_NMM: Tensor) -> Tensor:
    """Return what an iteration multiplies matrices of these products with their transposes by."""
    a, b, c = _NEWTON_SCHULZ
    factor = torch.baddbmm(gram_NMM, gram_NMM, gram_NMM, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether ``Muon`` takes a parameter for a matrix: two dimensions, both above 1."""
    return len(shape) == 2 and min(shape) > 1


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for matrices, AdamW for every other parameter.

    ``torch.optim.Muon`` runs its iterations in bfloat16, one matrix at a time, which processors
    without bfloat16 units emulate. This one works in float32 on all matrices of one shape at once.
    The update is scaled by 0.2 * sqrt(max(M, K)), so one learning rate and weight decay serve both
    parts (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        adam_scale: float = 0.5,
    ) -> None:
        """Group the parameters.

        Args:
            params: parameters; those of two dimensions with both sizes above 1 are matrices.
            lr: learning rate of the matrices.
            momentum: Nesterov momentum of the matrices.
            betas: AdamW's, for the rest.
            weight_decay: decoupled, for matrices alone.
            adam_scale: learning rate of the rest as a share of ``lr``.
        """
        params = list(params)
        matrices = [p for p in params if is_matrix(p.shape)]
        rest = [p for p in params if not is_matrix(p.shape)]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": lr, "kind": "matrix", "weight_decay": weight_decay},
            {"params": rest, "lr": lr * adam_scale, "kind": "rest", "weight_decay": 0.0},
        ]
        super().__init__(
            [g for g in groups if g["params"]], {"momentum": momentum, "betas": betas, "eps": 1e-8}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the gradients; parameters without one are left alone."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "matrix":
                self._step_matrices(params, group)
            else:
                self._step_rest(params, group)

    def _step_matrices(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for param in params:
            by_shape[param.shape].append(param)
        for shape, same in by_shape.items():
            updates = []
            for param in same:
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                momentum: Tensor = state["momentum"]
                gradient = param.grad if param.grad is not None else torch.zeros_like(param)
                momentum.lerp_(gradient, 1 - group["momentum"])
                updates.append(torch.lerp(gradient, momentum, group["momentum"]))
            scale = group["lr"] * _MATCHED_RMS * math.sqrt(max(shape))
            for param, update in zip(same, orthogonalise(torch.stack(updates)), strict=True):
                if group["weight_decay"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-scale)

    def _step_rest(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        by_step: dict[float, list[Tensor]] = defaultdict(list)
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(param)
                state["square"] = torch.zeros_like(param)
            state["step"] += 1
            by_step[float(state["step"])].append(param)
        for step, same in by_step.items():  # many and small: one call for all
            grads = [param.grad for param in same if param.grad is not None]
            means = [self.state[param]["mean"] for param in same]
            squares = [self.state[param]["square"] for param in same]
            torch._foreach_lerp_(means, grads, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, grads, grads, 1 - second)
            roots = torch._foreach_div(squares, 1 - second**step)
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_addcdiv_(same, means, roots, -group["lr"] / (1 - first**step))


def make_optimizer(
    name: str, params: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the named optimiser, ``adamw`` or ``muon``.

    Raises:
        ValueError: for another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(
            params, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
        )
    if name == "muon":
        return Muon(params, learning_rate, weight_decay=weight_decay)
    raise ValueError(unknown_name("optimizer", name, ("adamw", "muon")))


def schedule(step: float, num_updates: int, warmup: int, kind: str = "cosine") -> float:
    """Return the learning-rate factor of update ``step``: linear warm-up, then what ``kind`` says.

    Args:
        step: 0 for the first update; with a budget it may lie between updates.
        num_updates: updates in all.
        warmup: updates of linear warm-up.
        kind: a key of ``FINAL_FACTORS``; a cosine ends near its factor.
    """
    final = FINAL_FACTORS[kind]
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1, num_updates - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def sum_gradients(params: Sequence[nn.Parameter], numbers: Tensor, group: Group) -> Tensor:
    """Give every process the sum of all processes' gradients, by one all-reduce.

    Unlike torch's DistributedDataParallel this needs no hooks, and so neither as many backward
    passes nor the same parameters in the graph on every process: a share may be without rows of a
    capability, or without any. A parameter without a gradient anywhere stays without.

    Args:
        params: float32, the same on every process, in the same order.
        numbers: [N] float32 on their device, what else is to be summed.
        group: the processes; alone, nothing is done.

    Returns:
        The sums of ``numbers``.
    """
    if group.size == 1:
        return numbers
    used = torch.tensor([p.grad is not None for p in params]).to(numbers)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([numbers, used, *(grad.flatten() for grad in grads)])
    group.add(flat)
    numbers, used, summed = flat.split([len(numbers), len(params), sum(p.numel() for p in params)])
    sizes = [param.numel() for param in params]
    for param, is_used, grad in zip(params, used.tolist(), summed.split(sizes), strict=True):
        param.grad = grad.view_as(param) if is_used else None
    return numbers


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times the rate it was made with."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor
