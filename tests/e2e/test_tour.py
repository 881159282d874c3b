"""The notebook runs from its first to its last cell, with the teachers that are committed.

Its cell of parameters is replaced by smaller ones, so that its student takes a moment.
"""

import base64
import io
import json
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image
from repository import ROOT

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]

TOUR = ROOT / "notebooks" / "tour.ipynb"
SMALLER = """
small = {
    "distill.num_updates": 2,
    "distill.warmup": 1,
    "distill.batch_size": 6,
    "distill.num_steps": 2,
    "distill.evaluate_samples": 1,
    "cache.num_samples": 6,
    "cache.num_steps": 2,
    "evaluate.num_steps": 2,
    "run.num_threads": 1,
}
rows = {"num_train": 24, "num_validation": 12, "num_test": 12}
"""


def test_it_goes_from_teachers_to_an_edited_picture() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    (settings,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    before, after = ({}, {})
    exec(settings.source, before)
    exec(SMALLER, after)
    assert set(before["small"]) <= {*after["small"], "evaluate.num_samples"}
    settings.source = SMALLER
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(TOUR.parent))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for output in outputs
        if output.output_type == "display_data"
    ]
    assert [picture.size for picture in pictures[1:]] == [(4 * 168, 160)]
    said = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "pixels that the local edit kept" in said
    assert "0 {'t2i'" in said
    assert "2 {'t2i'" in said


def test_the_hosted_workflow_executes_it_on_every_push() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text("utf-8"))
    commands = [step.get("run") for step in workflow["jobs"]["notebook"]["steps"]]
    assert "if" not in workflow["jobs"]["notebook"]
    assert f"make test ARGS={Path(__file__).relative_to(ROOT)}" in commands


def test_its_outputs_are_not_committed() -> None:
    for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
