"""The student behind ``mlflow models serve``: MLflow runs this file when it loads the model.

One row is a prompt and, for an edit, the picture to edit as base64 text of its file; the answer is
a base64 PNG. Seed, steps, guidance and size are parameters of the request. The weights are checked
against the digest that was registered before they are loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from danceflow.columns import IMAGE_COLUMNS
from danceflow.data.sizes import read_size
from danceflow.errors import DanceflowError, DataError
from danceflow.pictures import decode, png_base64, png_bytes, read_base64
from danceflow.registry.open import open_folder

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_ROWS = 64
"""Of one request: as many can be asked for in others."""

MAX_STEPS = 1000


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
            model_input: columns ``prompt`` and, optional, ``image`` (base64 text of a picture's
                file, with or without a ``data:`` address; null or empty: generate), ``image_2`` and
                ``image_3`` (further pictures of an edit).
            params: ``seed``, ``steps``, ``guidance`` and ``size`` (WIDTHxHEIGHT of what is
                generated; empty: the usual one); the signature gives their defaults.

        Raises:
            MlflowException: a row or a parameter cannot be used (the server answers 400).
        """
        given = dict(params or {})
        try:
            if len(model_input) > MAX_ROWS:
                raise DataError(f"{len(model_input)} rows, at most {MAX_ROWS} can be asked at once")
            steps = int(given["steps"]) if given.get("steps") else None
            if steps is not None and steps > MAX_STEPS:
                raise DataError(f"steps: {steps} are asked for, at most {MAX_STEPS} are made")
            prompts = [_prompt(row, cell) for row, cell in enumerate(model_input["prompt"])]
            columns = [name for name in IMAGE_COLUMNS if name in model_input]
            # One after the other, and kept in the student's size: not all large ones at a time.
            sources = [
                self._sources(row, {name: model_input[name].iloc[row] for name in columns})
                for row in range(len(prompts))
            ]
            results = self._student.run(
                prompts,
                sources,
                seed=int(given.get("seed", 0)),
                num_steps=steps,
                guidance=float(given.get("guidance", 1.0)),
                size=read_size(given["size"]) if given.get("size") else None,
            )
        except DanceflowError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        answers = [png_base64(png_bytes(image, compress_level=6)) for image in results]
        return pd.DataFrame({"image": answers})

    def _sources(self, row: int, cells: Mapping[str, object]) -> "list[Image] | None":
        """Return the pictures in a row's cells as the student sees them, None where none is."""
        found: list[Image] = []
        for name, cell in cells.items():
            if _is_empty(cell):
                continue
            try:
                if not isinstance(cell, str):
                    raise DataError(f"should be base64 text, found {type(cell).__name__}")
                if not found and name != IMAGE_COLUMNS[0]:
                    raise DataError(f"is given without {IMAGE_COLUMNS[0]}")
                first = found[0] if found else None
                found.append(self._student.framed(decode(read_base64(cell)), first))
            except DataError as error:
                raise DataError(f"row {row}, {name}: {error}") from error
        return found or None


def _prompt(row: int, cell: object) -> str:
    if _is_empty(cell) or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"row {row}, prompt: is empty")
    if not isinstance(cell, str):
        raise DataError(f"row {row}, prompt: should be text, found {type(cell).__name__}")
    return cell


def _is_empty(cell: object) -> bool:
    """Whether a cell holds nothing, for which pandas has several words."""
    return cell == "" or (pd.api.types.is_scalar(cell) and bool(pd.isna(cell)))


mlflow.models.set_model(ServedStudent())
