"""The student that the pipeline made, in use: the commands, and what MLflow serves."""

import sys
from pathlib import Path

import numpy as np
import pytest
from one_process import one_process
from PIL import Image

from danceflow.ops.tracking import open_store

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

PROMPT = "a red circle"
INSTRUCTION = "make the red circle green"

SERVED = """
import sys
import mlflow, pandas as pd
from danceflow.pictures import png_base64, read_base64, read_own
from pathlib import Path

uri, picture, out, prompt, instruction = sys.argv[1:]
picture, out = Path(picture), Path(out)
model = mlflow.pyfunc.load_model(uri)
source = png_base64(picture.read_bytes())
for name, row in {
    "generate": {"prompt": [prompt]},
    "edit": {"prompt": [instruction], "image": [source]},
}.items():
    answer = model.predict(pd.DataFrame(row), params={"seed": 5, "steps": 2})
    read_own(read_base64(answer["image"][0])).save(out / f"{name}.png")
"""


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_folder_run_alias_and_pyfunc_give_the_same_images(finished, tmp_path: Path) -> None:
    checkout = finished.checkout
    store = open_store(checkout.tracking)
    (run,) = store.client.search_runs([store.experiment_id])
    name = checkout.params.tracking.registered_model
    alias = f"models:/{name}@challenger"
    sources = {"folder": "models/student", "run": f"runs:/{run.info.run_id}", "alias": alias}
    size = checkout.params.data.image_size
    picture = tmp_path / "in.png"
    Image.new("RGB", (size, size), "white").save(picture)
    options = ["--seed", "5", "--num-steps", "2"]
    calls = [
        [command, *what, *options, "--from", source, "--out", str(tmp_path / f"{place}-{command}")]
        for place, source in sources.items()
        for command, what in (("generate", [PROMPT]), ("edit", [str(picture), INSTRUCTION]))
    ]
    said = checkout.run(*one_process(calls)).splitlines()
    assert len([line for line in said if not line.startswith("$ ")]) == len(calls)
    checkout.run(
        sys.executable,
        "-c",
        SERVED,
        alias,
        str(picture),
        str(tmp_path),
        PROMPT,
        INSTRUCTION,
        environment={"MLFLOW_TRACKING_URI": store.uri},
    )
    for command in ("generate", "edit"):
        served = pixels(tmp_path / f"{command}.png")
        assert served.shape == (size, size, 3)
        assert served.std() > 0
        for place in sources:
            made = pixels(tmp_path / f"{place}-{command}" / "000.png")
            assert np.array_equal(made, served), (place, command)
    generated, edited = pixels(tmp_path / "generate.png"), pixels(tmp_path / "edit.png")
    assert not np.array_equal(generated, edited)
