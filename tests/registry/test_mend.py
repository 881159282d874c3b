from pathlib import Path
from urllib.parse import urlsplit

import pytest
from scored import evidence_of

from danceflow.errors import WeightsError
from danceflow.ops.tracking import open_store, start_run
from danceflow.registry.mend import mend_student
from danceflow.registry.open import open_student
from danceflow.registry.register import register_student


def spoil(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(b"{" if how == "truncated" else file.read_bytes().replace(b"1.0", b"2.0"))


@pytest.mark.parametrize("how", ["changed", "truncated", "gone"])
def test_a_damaged_artifact_is_told_and_sent_again(tracking, tmp_path, student_folder, how) -> None:
    store = open_store(tracking)
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        run_id = tracker.run_id
    assert not mend_student(store, "student", student_folder)  # it is not registered
    entry = register_student(store, lambda: run_id, student_folder, "student", evidence_of(0.5))
    assert not mend_student(store, "student", student_folder)
    place = store.client.get_model_version_download_uri("student", entry.version.version)
    (file,) = Path(urlsplit(place).path).glob("artifacts/student/weights.json")
    spoil(file, how)
    if how != "gone":  # of that MLflow says that it cannot be found
        with pytest.raises(WeightsError, match="its content is not what was registered"):
            open_student("models:/student/1", tracking)
    assert mend_student(store, "student", student_folder)
    (image,) = open_student("models:/student/1", tracking).generate(["green"])
    assert image.getpixel((0, 0)) == (0, 128, 0)
