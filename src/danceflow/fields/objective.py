"""Objectives: how far the student's velocity is from its target, and how K states combine.

An objective is a row loss, one number per queried state, and a reduction over the K states of a
sample; its loss is the mean over samples. Everything is computed in float32.

Two velocities at the same state differ by a multiple of their difference in every other
parametrisation, so most objectives are the velocity MSE times a weight of (sigma, sigma_next):
clean prediction z - sigma*v: sigma^2; Euler step: dsigma^2; SDE transition: see `transition_kl`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from danceflow.fields.field import VelocityField
from danceflow.fields.names import lookup
from danceflow.fields.rollout import (
    Ode,
    Sde,
    sde_std,
    sde_transition,
    sde_velocity_gain,
)
from danceflow.fields.states import Queries

Reduction = Literal["mean", "sum", "weighted"]
REDUCTIONS: Mapping[str, Reduction] = {name: name for name in get_args(Reduction)}
RowLoss = Callable[[Tensor, Tensor, Queries, VelocityField | None], Tensor]

KL_ETA = 0.7
"""Noise level of the SDE whose transition KL weights ODE states (Flow-OPD's eta)."""

MAX_SNR = 5.0
"""Cap of the signal-to-noise weight (gamma of min-SNR, arXiv 2303.09556)."""

RATIO_CLIP = 1e-4
"""PPO clip of Flow-OPD's likelihood ratio."""


@dataclass(frozen=True)
class Objective:
    """A loss on velocities.

    Attributes:
        row_loss: (student velocity, target velocity, queries, ema field) -> [M] row losses.
        reduction: how the K states of a sample combine: "mean", "sum", or "weighted" (each by its
            own share of the sample's loss, without gradient through the share).
        needs_ema: the row loss evaluates an EMA of the student.
        needs_successors: the row loss scores the transition to the state's successor.
    """

    row_loss: RowLoss
    reduction: Reduction = "mean"
    needs_ema: bool = False
    needs_successors: bool = False

    def __call__(
        self,
        student_velocity: Tensor,
        target_velocity: Tensor,
        queries: Queries,
        ema: VelocityField | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and the detached row losses [M], float32.

        Args:
            student_velocity: [M, C, H, W], with gradient.
            target_velocity: [M, C, H, W]; its gradient is not used.
            queries: the states both were evaluated at.
            ema: the EMA student's field, when `needs_ema`.

        Raises:
            ValueError: velocities of other shapes than the states, or a missing EMA or successor.
        """
        if not student_velocity.shape == target_velocity.shape == queries.z.shape:
            raise ValueError(
                f"student velocity {tuple(student_velocity.shape)} and target "
                f"{tuple(target_velocity.shape)} must have the states' shape "
                f"{tuple(queries.z.shape)}"
            )
        rows = self.row_loss(
            student_velocity.float(), target_velocity.detach().float(), queries, ema
        )
        rows_BK = rows.reshape(-1, queries.num_queries)
        return reduce_queries(rows_BK, self.reduction).mean(), rows.detach()


def reduce_queries(rows_BK: Tensor, reduction: Reduction) -> Tensor:
    """Return one loss per sample, [B], from the losses of its K states."""
    if reduction == "mean":
        return rows_BK.mean(dim=1)
    if reduction == "sum":
        return rows_BK.sum(dim=1)
    total = rows_BK.detach().sum(dim=1, keepdim=True)
    share = rows_BK.detach() / total.clamp_min(torch.finfo(total.dtype).tiny)
    return (share * rows_BK).sum(dim=1)


def velocity_mse(student_velocity: Tensor, target_velocity: Tensor) -> Tensor:
    """Return each row's squared difference averaged over C, H and W, [M]."""
    return (student_velocity - target_velocity).square().flatten(1).mean(dim=1)


def snr_weight(queries: Queries) -> Tensor:
    """Return sigma^2 * min(((1-sigma)/sigma)^2, 5): min-SNR weighted clean-prediction error."""
    return torch.minimum((1.0 - queries.sigma).square(), MAX_SNR * queries.sigma.square())


def consistency_weight(queries: Queries) -> Tensor:
    """Return sigma^2: the squared error of the one-step clean prediction z - sigma*v."""
    return queries.sigma.square()


def diffusion_opd_weight(queries: Queries) -> Tensor:
    """Return (dsigma)^2 / 2 with the grid's own steps, [M] (DiffusionOPD, arXiv 2605.15055)."""
    return 0.5 * (queries.sigma_next - queries.sigma).square()


def diffusion_opd_uniform_weight(queries: Queries) -> Tensor:
    """Return the released code's constant 1/(2 N^2), [M], right only on a uniform grid."""
    num_steps = len(queries.grid) - 1
    return torch.full_like(queries.sigma, 0.5 / num_steps**2)


def mix_weight(queries: Queries) -> Tensor:
    """Return (1 + dsigma^2 / mean(dsigma^2)) / 2, [M]: half plain MSE, half DiffusionOPD.

    The mean is over the grid's steps, so both halves weigh a rollout's N states alike.
    """
    mean = queries.grid.diff().square().mean()
    return 0.5 * (1.0 + (queries.sigma_next - queries.sigma).square() / mean)


def transition_kl(
    student_velocity: Tensor, target_velocity: Tensor, queries: Queries, eta: float
) -> Tensor:
    """Return the KL of the two SDE transitions per dimension of the state, [M].

    Both are Gaussian with the same variance, so it is gain^2 / (2 std^2) * MSE, where gain is
    d(mean)/d(velocity).
    """
    gain = sde_velocity_gain(queries.sigma, queries.sigma_next, eta)
    std = sde_std(queries.sigma, queries.sigma_next, eta)
    weight = gain.square() / (2.0 * std.square())
    return weight * velocity_mse(student_velocity, target_velocity)


def transition_log_prob(z_next: Tensor, velocity: Tensor, queries: Queries, eta: float) -> Tensor:
    """Return log p(z_next | z) per dimension of the state, without its constant, [M]."""
    mean, std = sde_transition(queries.z, velocity, queries.sigma, queries.sigma_next, eta)
    return -velocity_mse(z_next, mean) / (2.0 * std.square()) - std.log()


def policy_loss(kl: Tensor, log_prob: Tensor, old_log_prob: Tensor, clip: float) -> Tensor:
    """Return PPO's clipped loss of the advantage -kl, [M].

    -min(ratio * A, clip(ratio) * A) with A = -kl, ratio = exp(log_prob - old_log_prob). At ratio 1
    its gradient is grad(kl) + kl * grad(log_prob); the second term has mean zero over the noise.
    """
    ratio = (log_prob - old_log_prob).exp()
    return torch.maximum(ratio * kl, ratio.clamp(1.0 - clip, 1.0 + clip) * kl)


def _weighted_mse(weight: Callable[[Queries], Tensor]) -> RowLoss:
    """Return the row loss weight(queries) * velocity MSE."""

    def row_loss(
        student: Tensor, target: Tensor, queries: Queries, _ema: VelocityField | None
    ) -> Tensor:
        return weight(queries) * velocity_mse(student, target)

    return row_loss


def _kl(student: Tensor, target: Tensor, queries: Queries, _ema: VelocityField | None) -> Tensor:
    eta = KL_ETA if isinstance(queries.dynamics, Ode) else queries.dynamics.eta
    return transition_kl(student, target, queries, eta)


def _dmd_ema(
    student: Tensor, target: Tensor, queries: Queries, ema: VelocityField | None
) -> Tensor:
    """Distribution-matching direction: the EMA's gap to the target, applied to the student.

    The row's value is the EMA's gap; its gradient with respect to the student's velocity is
    2 * (v_ema - v_target) / (C*H*W) (DMD, arXiv 2311.18828, with the EMA as the fake field).
    """
    if ema is None:
        raise ValueError("the dmd-ema objective needs the EMA student's field")
    with torch.no_grad():
        direction = ema(queries.z, queries.sigma, queries.condition).float() - target
    return velocity_mse(student, student.detach() - direction)


def _flow_opd(detach: bool) -> RowLoss:
    """Return Flow-OPD's row loss (arXiv 2605.08063) for one update per rollout.

    The policy that drew the successors is then the student itself before the update, so its
    log-probability is the student's own, detached, and the ratio is exactly 1. With `detach` the
    advantage carries no gradient, and the expected gradient is zero: kept to show just that.
    """

    def row_loss(
        student: Tensor, target: Tensor, queries: Queries, _ema: VelocityField | None
    ) -> Tensor:
        if queries.z_next is None or not isinstance(queries.dynamics, Sde):
            raise ValueError("the flowopd objective needs SDE states with their successors")
        eta = queries.dynamics.eta
        kl = transition_kl(student, target, queries, eta)
        log_prob = transition_log_prob(queries.z_next, student, queries, eta)
        return policy_loss(kl.detach() if detach else kl, log_prob, log_prob.detach(), RATIO_CLIP)

    return row_loss


OBJECTIVES: Mapping[str, Objective] = {
    "mse": Objective(_weighted_mse(lambda queries: torch.ones_like(queries.sigma))),
    "snr": Objective(_weighted_mse(snr_weight)),
    "kl": Objective(_kl),
    "dmd-ema": Objective(_dmd_ema, needs_ema=True),
    "consistency": Objective(_weighted_mse(consistency_weight)),
    "mix": Objective(_weighted_mse(mix_weight)),
    "diffusionopd": Objective(_weighted_mse(diffusion_opd_weight), reduction="sum"),
    "diffusionopd_uniform": Objective(_weighted_mse(diffusion_opd_uniform_weight), reduction="sum"),
    "flowopd": Objective(_flow_opd(detach=False), needs_successors=True),
    "flowopd_detached": Objective(_flow_opd(detach=True), needs_successors=True),
}


def resolve_objective(name: str) -> Objective:
    """Return the named objective.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    return lookup(OBJECTIVES, name, "objective")


def with_reduction(objective: Objective, reduction: str) -> Objective:
    """Return the objective with the named reduction over the K states.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    return replace(objective, reduction=lookup(REDUCTIONS, reduction, "reduction"))
