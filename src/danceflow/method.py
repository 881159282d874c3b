"""Distillation methods as data: which states, which of them, which target, which objective.

A method decides everything that differs between DanceOPD and its rivals, so the training loop has
no branch on it:

    queries = method.collect(request)
    for chunk, share in queries.split(max_rows):
        target = method.target_velocity(chunk, teachers, capability_name)
        velocity = student(chunk.z, chunk.sigma, chunk.condition)
        loss, rows = method.objective(velocity, target, chunk, ema)
        (share * loss).backward()
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from danceflow.capability import asked
from danceflow.errors import ConfigError, unknown_name
from danceflow.fields import (
    COUPLINGS,
    INDEPENDENT,
    LOGIT_NORMAL,
    OBJECTIVES,
    QUERIES,
    AverageField,
    ForwardNoised,
    Objective,
    Ode,
    OnPolicy,
    Queries,
    Sde,
    StateRequest,
    StateSource,
    VelocityField,
    lookup,
    require_single,
    resolve_objective,
    with_reduction,
)
from danceflow.params.names import ROUTING_NAMES, Routing

if TYPE_CHECKING:
    from danceflow.params.sections import DistillParams, Params

Target = Literal["teacher", "data"]
STUDENT_ODE = OnPolicy(Ode())
DYNAMICS: Mapping[str, type[Ode] | type[Sde]] = {"ode": Ode, "sde": Sde}


@dataclass(frozen=True)
class Method:
    """Everything that makes one way of distilling differ from another.

    Attributes:
        name: its name in METHODS.
        states: where training states come from.
        query: which states: a name of fields.QUERIES, or "logit_normal" for noised states.
        num_queries: K states per sample, or "all" N states of the rollout.
        objective: what is minimised.
        routing: "hard" asks the capability's own teacher, "soft" the mean of all teachers.
        target: regress to the "teacher" velocity, or to the "data" velocity eps - x.
        group_size: consecutive samples of a batch that share their condition (not their noise):
            several noise draws per prompt.
        coupling: how the batch's queries are coupled, a name of fields.COUPLINGS.
        updates_per_rollout: R, the updates among which the states of a rollout are shared out: a
            rollout gives R times K states per sample, K for this update and K for each of R - 1
            later ones. Every update trains on as many states, from the R latest rollouts.
        trains: False for a method that is only its start, which ``capability.FIXED_STARTS`` names.
    """

    name: str
    states: StateSource = STUDENT_ODE
    query: str = "low"
    num_queries: int | Literal["all"] = 1
    objective: Objective = OBJECTIVES["mse"]
    routing: Routing = "hard"
    target: Target = "teacher"
    group_size: int = 1
    coupling: str = INDEPENDENT
    updates_per_rollout: int = 1
    trains: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for parts that are unknown or do not fit together."""
        noised = isinstance(self.states, ForwardNoised)
        known = [*QUERIES, *([LOGIT_NORMAL] if noised else [])]
        if self.query not in known:
            message = unknown_name("query", self.query, known)
            if self.query == LOGIT_NORMAL:
                message = f"query {LOGIT_NORMAL!r} leaves the grid, which a rollout cannot"
            raise ValueError(f"method {self.name!r}: {message}")
        if self.num_queries != "all" and (
            not isinstance(self.num_queries, int) or self.num_queries < 1
        ):
            raise ValueError(
                f"method {self.name!r}: num_queries is a number from 1 or 'all', "
                f"got {self.num_queries!r}"
            )
        if self.group_size < 1:
            raise ValueError(f"method {self.name!r}: group_size {self.group_size} is below 1")
        if self.updates_per_rollout < 1:
            raise ValueError(
                f"method {self.name!r}: updates_per_rollout {self.updates_per_rollout} is below 1"
            )
        if self.updates_per_rollout > 1 and (noised or self.objective.needs_successors):
            reason = "it rolls nothing out" if noised else "its objective needs fresh transitions"
            raise ValueError(
                f"method {self.name!r}: updates_per_rollout is {self.updates_per_rollout}, but "
                f"{reason}"
            )
        if self.routing not in ROUTING_NAMES:
            raise ValueError(unknown_name("routing", self.routing, ROUTING_NAMES))
        lookup(COUPLINGS, self.coupling, "coupling")
        if self.query == LOGIT_NORMAL and self.coupling != INDEPENDENT:
            raise ValueError(f"method {self.name!r}: a query {LOGIT_NORMAL!r} cannot be coupled")
        require_single(self.coupling, self.num_queries)
        if self.objective.needs_successors and self._warm_start:
            raise ValueError(
                f"method {self.name!r}: its objective scores the rollout's own transitions, which "
                "a warm start skips"
            )
        if self.objective.needs_successors and not isinstance(self.states.dynamics, Sde):
            raise ValueError(
                f"method {self.name!r}: its objective scores SDE transitions, so its states must "
                "come from an on-policy rollout with dynamics 'sde'"
            )
        if self.target == "data" and not noised:
            raise ValueError(
                f"method {self.name!r}: a data target needs forward-noised states, not a rollout"
            )

    @property
    def rolls_out(self) -> bool:
        """Whether it trains on states of the student's own rollout."""
        return self.trains and isinstance(self.states, OnPolicy)

    @property
    def _warm_start(self) -> int:
        """The rollout index where the student takes over; 0: from the noise on."""
        return self.states.warm_start if isinstance(self.states, OnPolicy) else 0

    def queries_per_sample(self, num_steps: int) -> int:
        """Return K for a rollout of num_steps steps.

        Raises:
            ValueError: K is above the number of steps, or the warm start is behind the last state.
        """
        if self._warm_start >= num_steps:
            raise ValueError(
                f"warm_start is {self._warm_start}, but a rollout of num_steps {num_steps} has its "
                f"last state at {num_steps - 1}"
            )
        if self.num_queries == "all":
            return num_steps
        if self.num_queries > num_steps:
            raise ValueError(
                f"num_queries is {self.num_queries}, but a rollout of num_steps {num_steps} has "
                f"only {num_steps} states"
            )
        return self.num_queries

    def num_samples(self, batch_size: int, share: float) -> int:
        """Return how many samples of a capability an update rolls out: whole groups.

        Args:
            batch_size: samples per update, of all its capabilities.
            share: of the capability in the update.
        """
        num_samples = batch_size / self.updates_per_rollout
        return max(1, round(num_samples * share / self.group_size)) * self.group_size

    def asks(self, capability: str, capabilities: Iterable[str]) -> tuple[str, ...]:
        """Return the capabilities whose teachers are asked at a capability's states."""
        if self.target == "data":
            return ()
        return tuple(capabilities) if self.routing == "soft" else (capability,)

    def collect(self, request: StateRequest) -> Queries:
        """Return the states of one batch to train on, without gradient.

        There are `updates_per_rollout` rounds of K per sample.

        Raises:
            ValueError: the method does not train, or K is above the number of steps.
        """
        if not self.trains:
            raise ValueError(f"method {self.name!r} does not train")
        return self.states.collect(
            replace(request, coupling=self.coupling, num_rounds=self.updates_per_rollout),
            self.query,
            self.queries_per_sample(len(request.grid) - 1),
            successors=self.objective.needs_successors,
        )

    def target_velocity(
        self, queries: Queries, teachers: Mapping[str, VelocityField], capability: str
    ) -> Tensor:
        """Return the velocity to regress to at every queried state, [M, C, H, W], no gradient.

        Args:
            queries: the states.
            teachers: every capability's frozen teacher field, by capability name.
            capability: the batch's capability.
        """
        if self.target == "data":
            if queries.data_velocity is None:
                raise ValueError("these states were not noised from data")
            return queries.data_velocity
        names = self.asks(capability, teachers)
        fields = [lookup(teachers, name, "teacher") for name in names]
        field = AverageField(fields) if self.routing == "soft" else fields[0]
        with torch.no_grad():
            return field(queries.z, queries.sigma, queries.condition)


_FLOW_OPD = Method(
    "flowopd",
    states=OnPolicy(Sde(0.7)),
    query="uniform",
    num_queries="all",
    objective=OBJECTIVES["flowopd"],
    group_size=16,
)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("danceopd"),
        Method("danceopd_clean", query="uniform", objective=OBJECTIVES["consistency"]),
        Method(
            "diffusionopd",
            query="uniform",
            num_queries="all",
            objective=OBJECTIVES["diffusionopd"],
        ),
        Method(
            "diffusionopd_uniform",
            query="uniform",
            num_queries="all",
            objective=OBJECTIVES["diffusionopd_uniform"],
        ),
        _FLOW_OPD,
        replace(_FLOW_OPD, name="flowopd_detached", objective=OBJECTIVES["flowopd_detached"]),
        Method("offpolicy", states=ForwardNoised("teacher")),
        Method("offpolicy_random_latent", states=ForwardNoised("random_latent")),
        Method("joint", states=ForwardNoised("data"), query=LOGIT_NORMAL, target="data"),
        Method("merge", trains=False),
        Method("soft", routing="soft"),
    )
}


def resolve_method(
    name: str,
    *,
    objective: str | None = None,
    reduction: str | None = None,
    dynamics: str | None = None,
    eta: float | None = None,
    warm_start: int | None = None,
    **fields: Any,
) -> Method:
    """Return the named method, with the parts that are given replaced.

    The parts are those of ``danceflow.params.sections.MethodParts``.

    Args:
        name: a name of METHODS.
        objective: a name of fields.OBJECTIVES.
        reduction: how K states combine: "mean", "sum", "weighted".
        dynamics: "ode" or "sde", for methods whose states come from a rollout.
        eta: noise level of the SDE.
        warm_start: the rollout index where the student takes over from a noised teacher sample.
        fields: the other parts, which are fields of ``Method`` by the same names.

    Raises:
        ValueError: an unknown name (the message names the nearest), or parts that do not fit.
    """
    method = lookup(METHODS, name, "method")
    loss = method.objective if objective is None else resolve_objective(objective)
    return replace(
        method,
        states=_with_start(method, _with_dynamics(method, dynamics, eta), warm_start),
        objective=loss if reduction is None else with_reduction(loss, reduction),
        **fields,
    )


def _with_start(method: Method, states: StateSource, warm_start: int | None) -> StateSource:
    """Return the state source with the given warm start."""
    if warm_start is None:
        return states
    if not isinstance(states, OnPolicy):
        raise ValueError(
            f"method {method.name!r} noises clean states: warm_start applies only to rollouts"
        )
    return replace(states, warm_start=warm_start)


def _with_dynamics(method: Method, name: str | None, eta: float | None) -> StateSource:
    """Return the method's state source with the named dynamics and noise level."""
    states = method.states
    if name is None and eta is None:
        return states
    if not isinstance(states, OnPolicy):
        raise ValueError(
            f"method {method.name!r} noises clean states: dynamics and eta apply only to rollouts"
        )
    kind = type(states.dynamics) if name is None else lookup(DYNAMICS, name, "dynamics")
    if kind is Sde:
        given = states.dynamics if isinstance(states.dynamics, Sde) else Sde()
        return replace(states, dynamics=given if eta is None else Sde(eta))
    if eta is not None:
        raise ValueError(f"eta is {eta}, but dynamics 'ode' has no noise; use 'sde'")
    return replace(states, dynamics=Ode())


def method_of(config: "DistillParams") -> Method:
    """Return the configured method.

    Raises:
        ConfigError: its parts do not fit.
    """
    try:
        method = resolve_method(config.method, **config.replaced)
        method.queries_per_sample(config.num_steps)
    except ValueError as error:
        raise ConfigError(f"distill: {error}") from error
    if config.batch_size % method.group_size:
        raise ConfigError(
            f"distill.batch_size {config.batch_size} is no multiple of the group size "
            f"{method.group_size}"
        )
    if config.batch_size % (method.group_size * method.updates_per_rollout):
        raise ConfigError(
            f"distill.batch_size {config.batch_size} is no multiple of group size "
            f"{method.group_size} times updates_per_rollout {method.updates_per_rollout}"
        )
    if any(count > 1 for count in config.substeps.values()):
        _require_steps(method)
    if any(config.noised.values()):
        _require_plain_rollout(method)
    return method


def _require_steps(method: Method) -> None:
    """Raise ConfigError where a teacher has no answer over a step of the method's rollout."""
    if not method.trains or method.target == "data":
        reason = "asks no teacher"
    elif isinstance(method.states.dynamics, Sde):
        reason = "moves its states with noise (dynamics sde), and a teacher's step has none"
    elif method.query == LOGIT_NORMAL:
        reason = f"has states between the grid's (query {LOGIT_NORMAL}), where no step begins"
    elif method.routing == "soft":
        reason = "asks all teachers at once (routing soft), whose steps end apart"
    else:
        return
    raise ConfigError(f"distill.substeps: method {method.name!r} {reason}; name no substeps")


def _require_plain_rollout(method: Method) -> None:
    """Raise ConfigError where noised states cannot stand beside those of the method's rollout."""
    if not isinstance(method.states, OnPolicy):
        return
    if isinstance(method.states.dynamics, Sde):
        reason = "moves its states with noise (dynamics sde)"
    elif method.states.warm_start:
        reason = f"begins at noised teacher samples (warm_start {method.states.warm_start})"
    else:
        return
    raise ConfigError(f"distill.noised: method {method.name!r} {reason}; name no share")


def require_training(params: "Params", source: str) -> None:
    """Check that the distillation can start, before hours are spent on what comes before it.

    Args:
        params: the parameters.
        source: name of their file, for messages.

    Raises:
        ConfigError: the method's parts do not fit, or the student starts as all that it is to
            learn.
    """
    try:
        method = method_of(params.distill)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    found = asked(params)
    if not method.trains or method.target == "data" or found.differing:
        return
    [name] = found.start
    # An adapter of a lower rank than its start's does not hold all of it.
    if params.distill.student == "lora" and params.teachers[name].adapter_rank is not None:
        return
    raise ConfigError(
        f"{source}: distill.init: the student would start as {name!r}, which is the only teacher "
        "and has no guidance: there is nothing to learn"
    )
