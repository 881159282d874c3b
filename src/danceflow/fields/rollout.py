"""One rollout for training states, evaluation images, teacher samples and tests.

What to keep is an argument: each sample is integrated only as deep as its last kept state, and
leaves the batch there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from danceflow.fields.field import Condition, VelocityField
from danceflow.fields.seeds import Seeds, derive_seeds, normal, seed_list


@dataclass(frozen=True)
class Ode:
    """The probability-flow ODE by Euler steps: z_next = z + (sigma_next - sigma) * v."""


@dataclass(frozen=True)
class Sde:
    """The SDE with the ODE's marginals, by Euler-Maruyama steps (see `sde_transition`).

    Attributes:
        eta: noise level, above 0; 0.7 in Flow-GRPO and Flow-OPD.
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        """Raise ValueError for an eta that is not positive."""
        if not self.eta > 0:
            raise ValueError(f"the SDE's eta must be above 0 (use Ode() for 0), got {self.eta}")


Dynamics = Ode | Sde
ODE = Ode()


@dataclass(frozen=True)
class States:
    """The kept states of a rollout, in the order of `keep`.

    Attributes:
        z: [B, K, C, H, W], dtype of the noise.
        sigma: [B, K], noise level of each state.
        index: [B, K] long, grid index of each state.
    """

    z: Tensor
    sigma: Tensor
    index: Tensor


def rollout(
    field: VelocityField,
    noise: Tensor,
    condition: Condition,
    grid: Tensor,
    keep: Tensor,
    *,
    dynamics: Dynamics = ODE,
    sample_seeds: Seeds | None = None,
) -> States:
    """Return the states at the kept grid indices, without gradient.

    Sample i costs max(keep[i]) evaluations of the field, and rollout itself does the same
    arithmetic on it whatever the depth of its batch mates.

    Args:
        field: the velocity field to follow.
        noise: [B, C, H, W] states at grid[0], float32 (float64 is allowed, for tests of order).
        condition: B rows.
        grid: [N+1] decreasing sigmas.
        keep: [B, K] long, grid indices 0..N in any order; index N is the clean end.
        dynamics: `Ode()`, the default, or `Sde(eta)`, whose noise at step k is a function of
            (sample_seeds[i], k) alone.
        sample_seeds: one seed per sample, required by `Sde`.

    Raises:
        ValueError: shapes that disagree, kept indices off the grid, a missing seed, or a field
            whose velocity has another shape or dtype than its states.
    """
    keep_BK = keep.detach().cpu()
    _check(noise, condition, grid, keep_BK)
    sigmas = grid.to(noise)
    # Deepest first, so that the samples still on their way are always a prefix of the batch.
    depth_B = keep_BK.amax(dim=1)
    order_B = depth_B.argsort(descending=True, stable=True)
    seeds = _ordered_seeds(dynamics, sample_seeds, order_B)
    with torch.no_grad():
        kept = noise.new_empty(*keep_BK.shape, *noise.shape[1:])
        z = noise.detach()[order_B.to(noise.device)]
        condition = condition.select(order_B)
        for step in range(int(depth_B.max()) + 1):
            rows, slots = (keep_BK[order_B] == step).nonzero(as_tuple=True)
            kept[order_B[rows].to(z.device), slots.to(z.device)] = z[rows.to(z.device)]
            active = int((depth_B > step).sum())
            if active < len(z):
                z, condition = z[:active], condition.select(slice(active))
            if active:
                sigma, sigma_next = sigmas[step].repeat(active), sigmas[step + 1].repeat(active)
                velocity = field(z, sigma, condition)
                _check_velocity(velocity, z)
                if isinstance(dynamics, Sde):
                    mean, std = sde_transition(z, velocity, sigma, sigma_next, dynamics.eta)
                    noise_seeds = derive_seeds(seeds[:active], "sde", step)
                    z = mean + _wide(std, z) * normal(z.shape[1:], noise_seeds).to(z)
                else:
                    z = z + _wide(sigma_next - sigma, z) * velocity
    return States(kept, sigmas[keep_BK.to(sigmas.device)], keep_BK.to(noise.device))


def sample(field: VelocityField, noise: Tensor, condition: Condition, grid: Tensor) -> Tensor:
    """Return the clean end z_0 [B, C, H, W] of the ODE rollout on the whole grid."""
    keep = torch.full((noise.shape[0], 1), len(grid) - 1)
    return rollout(field, noise, condition, grid, keep).z[:, 0]


def sde_transition(
    z: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Return mean [B, C, H, W] and standard deviation [B] of one SDE step from z.

    With dt = sigma_next - sigma < 0 and g from `sde_diffusion`:
    mean = z * (1 + g^2/(2 sigma) dt) + v * (1 + g^2 (1-sigma)/(2 sigma)) dt, std = g sqrt(-dt)
    (Flow-GRPO, arXiv 2505.05470, eq. 9; Flow-OPD, arXiv 2605.08063).

    Args:
        z: states, [B, C, H, W].
        velocity: the field at z.
        sigma: [B] noise level of z, above 0.
        sigma_next: [B] next noise level, below sigma.
        eta: noise level of the SDE.
    """
    step = sigma_next - sigma
    pull = 1.0 + sde_diffusion(sigma, sigma_next, eta).square() / (2.0 * sigma) * step
    gain = sde_velocity_gain(sigma, sigma_next, eta)
    return _wide(pull, z) * z + _wide(gain, z) * velocity, sde_std(sigma, sigma_next, eta)


def sde_diffusion(sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """Return g = eta * sqrt(sigma / (1 - sigma)); at sigma = 1 the denominator uses sigma_next."""
    denominator = 1.0 - torch.where(sigma >= 1.0, sigma_next, sigma)
    return eta * (sigma / denominator).sqrt()


def sde_std(sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """Return the transition's standard deviation g * sqrt(-dt)."""
    return sde_diffusion(sigma, sigma_next, eta) * (sigma - sigma_next).sqrt()


def sde_velocity_gain(sigma: Tensor, sigma_next: Tensor, eta: float) -> Tensor:
    """Return d(mean)/d(velocity) = (1 + g^2 (1-sigma) / (2 sigma)) * dt, a negative number."""
    diffusion = sde_diffusion(sigma, sigma_next, eta)
    return (1.0 + diffusion.square() * (1.0 - sigma) / (2.0 * sigma)) * (sigma_next - sigma)


def _wide(per_sample: Tensor, z: Tensor) -> Tensor:
    """Return a [B] tensor shaped to multiply states [B, ...]."""
    return per_sample.reshape(-1, *[1] * (z.ndim - 1))


def _ordered_seeds(dynamics: Dynamics, seeds: Seeds | None, order: Tensor) -> list[int]:
    """Return the samples' seeds in rollout order; none for the ODE."""
    if isinstance(dynamics, Ode):
        return []
    if seeds is None or len(seeds) != len(order):
        raise ValueError(f"an SDE rollout of {len(order)} samples needs as many sample_seeds")
    given = seed_list(seeds)
    return [given[position] for position in order.tolist()]


def _check(noise: Tensor, condition: Condition, grid: Tensor, keep: Tensor) -> None:
    """Raise ValueError for arguments of `rollout` that do not fit together."""
    if noise.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"states are integrated in float32, got noise of {noise.dtype}")
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid is [N+1] sigmas, got shape {tuple(grid.shape)}")
    if keep.ndim != 2 or keep.dtype != torch.int64 or keep.numel() == 0:
        raise ValueError(f"keep is [B, K] long, got {tuple(keep.shape)} {keep.dtype}")
    if not noise.shape[0] == condition.num_samples == keep.shape[0]:
        raise ValueError(
            f"batch sizes differ: noise {noise.shape[0]}, condition {condition.num_samples}, "
            f"keep {keep.shape[0]}"
        )
    low, high = int(keep.min()), int(keep.max())
    if low < 0 or high > len(grid) - 1:
        raise ValueError(f"kept indices {low}..{high} leave the grid 0..{len(grid) - 1}")


def _check_velocity(velocity: Tensor, z: Tensor) -> None:
    """Raise ValueError when a field breaks its contract: the shape and dtype of its states."""
    if velocity.shape != z.shape or velocity.dtype != z.dtype:
        raise ValueError(
            f"the field returned {tuple(velocity.shape)} {velocity.dtype} for states "
            f"{tuple(z.shape)} {z.dtype}"
        )
