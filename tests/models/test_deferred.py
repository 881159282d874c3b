import subprocess
import sys
from pathlib import Path

import pytest

from danceflow.models.deferred import defer


def _run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.split()


def test_a_package_waits_until_something_of_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "slow_one"
    package.mkdir()
    log = tmp_path / "log"
    (package / "__init__.py").write_text(f"open({str(log)!r}, 'a').write('x')\nvalue = 7\n")
    (package / "part.py").write_text("import slow_one\nvalue = slow_one.value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    defer("slow_one", "there_is_no_such_one")
    import slow_one  # type: ignore[import-not-found]

    assert not log.exists()
    assert "there_is_no_such_one" not in sys.modules
    assert slow_one.value == 7
    from slow_one.part import value  # type: ignore[import-not-found]

    assert value == 8
    assert log.read_text() == "x"
    defer("slow_one")
    assert sys.modules["slow_one"] is slow_one
    with pytest.raises(AttributeError, match="nothing"):
        _ = slow_one.nothing
    for name in ("slow_one", "slow_one.part"):
        monkeypatch.delitem(sys.modules, name)


def test_a_run_without_a_quantised_base_does_not_pay_for_it() -> None:
    code = (
        "import sys, danceflow.models.families.sd3, peft, diffusers\n"
        "diffusers.SD3Transformer2DModel\n"
        "names = 'torch._inductor.codecache', 'bitsandbytes.functional'\n"
        "print(*(name in sys.modules for name in names))"
    )
    assert _run(code) == ["False", "False"]
