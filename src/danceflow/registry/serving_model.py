"""The student behind ``mlflow models serve``: MLflow runs this file when it loads the model.

One row is a prompt and, for an edit, the image to edit as base64 PNG; the answer is base64 PNG.
Seed, steps, guidance and size are parameters of the request. The weights are checked against the
digest that was registered before they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from danceflow.data.sizes import read_size
from danceflow.errors import DanceflowError
from danceflow.registry.images import image_from_base64, image_to_base64
from danceflow.registry.package import open_folder


class ServedStudent(PythonModel):
    """A student as an MLflow model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights after their digest was checked."""
        config = context.model_config
        self._student = open_folder(
            Path(context.artifacts["student"]), config["digest"], config.get("device", "cpu")
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a frame with one column ``image``: base64 PNG, one per row.

        Args:
            context: unused here; ``load_context`` took what it holds.
            model_input: columns ``prompt`` and, optional, ``image`` (base64 PNG; null: generate).
            params: ``seed``, ``steps``, ``guidance`` and ``size`` (WIDTHxHEIGHT of what is
                generated; empty: the usual one); the signature gives their defaults.

        Raises:
            MlflowException: a row or a parameter cannot be used (the server answers 400).
        """
        given = dict(params or {})
        images = model_input["image"] if "image" in model_input else [None] * len(model_input)
        try:
            sources = [
                image_from_base64(text, f"row {row}, image")
                if isinstance(text, str) and text
                else None
                for row, text in enumerate(images)
            ]
            results = self._student.run(
                list(model_input["prompt"]),
                sources,
                seed=int(given.get("seed", 0)),
                num_steps=int(given["steps"]) if given.get("steps") else None,
                guidance=float(given.get("guidance", 1.0)),
                size=read_size(given["size"]) if given.get("size") else None,
            )
        except DanceflowError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"image": [image_to_base64(image) for image in results]})


mlflow.models.set_model(ServedStudent())
