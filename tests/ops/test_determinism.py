"""What a stage's parameters decide about its process, and that nothing from outside does."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from danceflow.errors import UsageError
from danceflow.ops import determinism
from danceflow.params.sections import RunParams

RUN = RunParams(
    seed=3,
    device="cpu",
    dtype="float32",
    base="float",
    num_threads=2,
    offload="none",
    compile=False,
    num_processes=1,
)


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_prepare_imports_no_torch_but_reaches_it_later() -> None:
    code = (
        "import sys\n"
        "from danceflow.ops import determinism\n"
        "from danceflow.params.sections import RunParams\n"
        "determinism.prepare(RunParams(seed=3, device='cpu', dtype='float32', "
        "base='float', num_threads=1, offload='none', compile=False, num_processes=1))\n"
        "assert 'torch' not in sys.modules\n"
        "import torch; print(torch.get_num_threads())"
    )
    assert _python(code, OMP_NUM_THREADS="2") == "1"


@pytest.fixture
def torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what a run's parameters change in this process."""
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "as before")
    num_threads = torch.get_num_threads()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    state = torch.get_rng_state()
    yield
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(is_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fills
    torch.set_rng_state(state)


@pytest.mark.usefixtures("torch_as_before")
def test_the_parameters_win_over_the_environment() -> None:
    import torch

    determinism.prepare(RUN)
    first = torch.rand(3)
    determinism.prepare(RUN)
    assert torch.equal(torch.rand(3), first)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "as before"
    with pytest.raises(UsageError, match=r"run\.device: there is no 'cuda:97' on this machine"):
        determinism.prepare(RUN.model_copy(update={"device": "cuda:97"}))
