"""The metrics beside the score, a row each: what people read, where it is made, what it needs.

To add one is to write its evaluator in a module of this package, and its row here. Nothing is
imported: pages take names from this table, and only an evaluation opens the metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        label: what people call it.
        maker: ``module:name`` in this package: an evaluator or, with ``weights``, what makes one
            from the path of its weights.
        measurements: what people read over each number that it yields, by the number's name.
        weights: the parameter of ``evaluate.weights`` that it needs, None for one without weights.
        only_edits: whether it is about edits alone.
    """

    label: str
    maker: str
    measurements: Mapping[str, str]
    weights: str | None = None
    only_edits: bool = False


METRICS = (
    Metric(
        "What must not change",
        "preservation:preservation",
        {
            "psnr": "PSNR of what must not change (dB)",
            "ssim": "SSIM of what must not change",
        },
        only_edits=True,
    ),
    Metric(
        "FID and KID on own features",
        "distribution:distribution",
        {
            "fid_conv64": "FID, own extractor conv64",
            "kid_conv64": "KID, own extractor conv64",
        },
    ),
    Metric("CLIPScore", "clip:ClipScore", {"clip_score": "CLIPScore"}, weights="clip"),
    Metric("LPIPS", "lpips:Lpips", {"lpips": "LPIPS to the target"}, weights="lpips"),
    Metric(
        "FID and KID on Inception features",
        "distribution:InceptionDistances",
        {"fid_inception": "FID, Inception", "kid_inception": "KID, Inception"},
        weights="inception",
    ),
)
"""In the order in which they are measured and shown."""
