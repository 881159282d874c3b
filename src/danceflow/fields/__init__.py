"""The maths of flow matching and on-policy distillation, on torch alone.

Notation: sigma in [0, 1], 1 is pure noise and 0 clean; z = (1 - sigma) * x + sigma * eps;
velocity v = dz/dsigma = eps - x; integrating down: z_next = z + (sigma_next - sigma) * v.
"""

from danceflow.fields.field import (
    AverageField,
    Condition,
    CountingField,
    GuidedField,
    VelocityField,
    guidance_cost,
    pad_length,
)
from danceflow.fields.gaussian import GaussianField
from danceflow.fields.grid import shifted_grid
from danceflow.fields.names import lookup
from danceflow.fields.objective import (
    OBJECTIVES,
    REDUCTIONS,
    Objective,
    resolve_objective,
    velocity_mse,
    with_reduction,
)
from danceflow.fields.query import COUPLINGS, INDEPENDENT, QUERIES, draw_queries, require_single
from danceflow.fields.rollout import Dynamics, Ode, Sde, States, rollout, sample
from danceflow.fields.seeds import derive_seeds, normal, seed_for, uniform
from danceflow.fields.sources import (
    MAX_SOURCES,
    SOURCE,
    SOURCES,
    Sources,
    as_sources,
    no_sources,
    rows_with_source,
    with_source,
)
from danceflow.fields.states import (
    LOGIT_NORMAL,
    ForwardNoised,
    Noised,
    OnPolicy,
    Queries,
    StateRequest,
    StateSource,
    samples_together,
)
from danceflow.fields.substeps import SteppedField, substep_grid

__all__ = [
    "COUPLINGS",
    "INDEPENDENT",
    "LOGIT_NORMAL",
    "MAX_SOURCES",
    "OBJECTIVES",
    "QUERIES",
    "REDUCTIONS",
    "SOURCE",
    "SOURCES",
    "AverageField",
    "Condition",
    "CountingField",
    "Dynamics",
    "ForwardNoised",
    "GaussianField",
    "GuidedField",
    "Noised",
    "Objective",
    "Ode",
    "OnPolicy",
    "Queries",
    "Sde",
    "Sources",
    "StateRequest",
    "StateSource",
    "States",
    "SteppedField",
    "VelocityField",
    "as_sources",
    "derive_seeds",
    "draw_queries",
    "guidance_cost",
    "lookup",
    "no_sources",
    "normal",
    "pad_length",
    "require_single",
    "resolve_objective",
    "rollout",
    "rows_with_source",
    "sample",
    "samples_together",
    "seed_for",
    "shifted_grid",
    "substep_grid",
    "uniform",
    "velocity_mse",
    "with_reduction",
    "with_source",
]
