"""The names that a params file may say.

Most repeat tables whose modules import torch, so that a file is checked without it; tests hold them
equal to those tables. The names of columns lie in ``danceflow.columns``, for they decide a result.
"""

from collections.abc import Mapping
from typing import Literal, get_args

METHOD_NAMES = (
    "danceopd",
    "danceopd_clean",
    "diffusionopd",
    "diffusionopd_uniform",
    "flowopd",
    "flowopd_detached",
    "offpolicy",
    "offpolicy_random_latent",
    "joint",
    "merge",
    "soft",
)
QUERY_NAMES = ("low", "median", "high", "uniform", "stratified", "curriculum", "logit_normal")
OBJECTIVE_NAMES = (
    "mse",
    "snr",
    "kl",
    "dmd-ema",
    "consistency",
    "mix",
    "diffusionopd",
    "diffusionopd_uniform",
    "flowopd",
    "flowopd_detached",
)
REDUCTION_NAMES = ("mean", "sum", "weighted")
DYNAMICS_NAMES = ("ode", "sde")
Routing = Literal["hard", "soft"]
ROUTING_NAMES: tuple[Routing, ...] = get_args(Routing)
COUPLING_NAMES = ("independent", "antithetic", "stratified")
FAMILY_NAMES = ("flux2", "qwen_image", "qwen_image21", "sd3", "zimage")
SOURCE_NAMES = ("table", "folder", "dataset")
SCRATCH, BROUGHT = "scratch", "brought"
"""What a teacher's ``init`` can say beside another teacher's name."""
WORLD_BUCKETS: Mapping[str, tuple[str, ...] | None] = {
    "digits": None,
    "rows": None,
    "scenes": (
        "t2i",
        "local_edit",
        "global_edit",
        "realism",
        "subject_add",
        "subject_remove",
        "subject_replace",
        "color_alter",
        "corner_add",
        "beside_add",
        "background_change",
        "grayscale",
        "inverted",
        "sunset",
        "night",
    ),
}
"""The buckets that each world draws; None where its rows are read, and buckets are theirs."""
