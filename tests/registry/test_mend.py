from pathlib import Path
from urllib.parse import urlsplit

import pytest
from scored import evidence_of

from danceflow.errors import DataError, TrackingError, WeightsError
from danceflow.ops.tracking import open_store, start_run
from danceflow.registry.evidence import EVIDENCE_TAG, current
from danceflow.registry.mend import mend_evidence, mend_student
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


@pytest.mark.parametrize("how", ["changed", "truncated", "gone"])
def test_damaged_evidence_is_told_and_sent_again(
    tracking, tmp_path, student_folder, caplog, how
) -> None:
    store, evidence = open_store(tracking), evidence_of(1.0)
    assert not mend_evidence(store, "student", student_folder, evidence)  # it is not registered
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        run_id = tracker.run_id
    register_student(store, lambda: run_id, student_folder, "student", evidence)
    assert not mend_evidence(store, "student", student_folder, evidence)
    version = store.client.get_model_version("student", "1")
    place = urlsplit(store.client.get_run(run_id).info.artifact_uri).path
    spoil(Path(place) / version.tags[EVIDENCE_TAG], how)
    words = "is gone from run" if how == "gone" else "its content is not what was written"
    with pytest.raises((DataError, TrackingError)) as told:
        current(store, version)
    assert words in str(told.value)
    assert "`danceflow sync` in" in " ".join(str(told.value).split())
    # By another evaluation it was not registered: that one mends nothing.
    assert not mend_evidence(store, "student", student_folder, evidence_of(0.5))
    assert mend_evidence(store, "student", student_folder, evidence)
    assert "the evaluation of version 1 of student was damaged" in caplog.text
    assert current(store, version) == evidence
