import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import processes
from flows.processes import LineReader, ProcessGroups, end_group

# A leader that takes no notice of SIGTERM, with a child; both write when they are up.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, flush=True)
time.sleep(300)
"""
WILLING = "import time; print('up', flush=True); time.sleep(300)"


def start(code: str) -> tuple[subprocess.Popen[bytes], bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


def alive(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(process_id: int) -> None:
    deadline = time.monotonic() + 20
    while alive(process_id):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_group_that_does_not_listen_is_killed_with_its_children():
    process, line = start(STUBBORN)
    end_group(process, grace_s=0.3)
    assert process.wait(20) < 0
    wait_until_gone(int(line))


def test_a_group_that_listens_is_not_waited_for():
    process, _ = start(WILLING)
    begin = time.monotonic()
    end_group(process, grace_s=30)
    assert process.wait(20) < 0
    assert time.monotonic() - begin < 15


def test_leaving_the_block_ends_everything():
    with pytest.raises(KeyboardInterrupt), ProcessGroups(grace_s=5) as groups:
        first, _ = start(WILLING)
        second, _ = start(WILLING)
        with groups.holding(first), groups.holding(second):
            threading.Timer(0.1, groups.stop).start()
            assert first.wait(20) < 0
            assert second.wait(20) < 0
        assert groups.stopped
        raise KeyboardInterrupt
    late, _ = start(WILLING)
    with groups.holding(late):
        assert late.wait(20) < 0


def test_what_ended_is_not_touched():
    with ProcessGroups() as groups:
        process, _ = start("print('up')")
        with groups.holding(process):
            process.wait(20)
    end_group(process, grace_s=1)


# A flow with two groups: one that listens, of which it is done with one more, and a stubborn one.
FLOW = """
import contextlib, subprocess, sys, time
from flows.processes import ProcessGroups
stubborn, willing = sys.argv[1:]

def start(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    return process, process.stdout.readline().decode().strip()

with ProcessGroups(grace_s=0.5) as groups, contextlib.ExitStack() as stack:
    done, _ = start("print('up')")
    with groups.holding(done):
        done.wait()
    first, child = start(stubborn)
    stack.enter_context(groups.holding(first))
    second, _ = start(willing)
    stack.enter_context(groups.holding(second))
    print(first.pid, child, second.pid, groups._watcher.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_flow_that_is_killed_leaves_no_group(number):
    flow = subprocess.Popen([sys.executable, "-c", FLOW, STUBBORN, WILLING], stdout=subprocess.PIPE)
    assert flow.stdout is not None
    with flow.stdout as output:
        started = [int(word) for word in output.readline().split()]
    assert all(map(alive, started))
    flow.send_signal(number)
    assert flow.wait(20) == -number
    for process_id in started:
        wait_until_gone(process_id)


def test_the_watcher_ends_with_the_groups():
    with ProcessGroups() as groups:
        process, _ = start(WILLING)
        with groups.holding(process):
            watcher = groups._watcher
            assert watcher is not None
            assert alive(watcher.pid)
            groups.stop()
    assert watcher.returncode == 0
    assert process.wait(20) < 0


def ends_with_parent(place: Path, patience_s: float) -> None:
    """What a process does that a schedule has started; without patience for its last words."""
    processes._LAST_WORDS_S = patience_s
    signal.signal(signal.SIGTERM, lambda *_: (place / "told").touch())
    processes.end_with_parent()
    (place / "started").write_text(str(os.getpid()))
    time.sleep(300)


def parent_of_one(place: Path) -> None:
    context = multiprocessing.get_context("spawn")
    context.Process(target=ends_with_parent, args=(place, 0.5)).start()
    time.sleep(300)


def test_what_a_killed_process_had_started_ends_with_it(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=parent_of_one, args=(tmp_path,))
    parent.start()
    started = tmp_path / "started"
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.join()
    wait_until_gone(int(started.read_text()))
    assert (tmp_path / "told").exists()
    processes.end_with_parent()  # no schedule has started this one


def read(*chunks: bytes, clock=lambda: 0.0, every: float = 10.0) -> list[str]:
    lines: list[str] = []
    reader = LineReader(lines.append, progress_every_s=every, clock=clock)
    for chunk in chunks:
        reader.feed(chunk)
    reader.close()
    return lines


def test_lines_come_out_however_they_are_cut():
    assert read(b"one\ntw", b"o\r", b"\nthree") == ["one", "two", "three"]
    text = "größer ✓\n".encode()
    assert read(*(text[i : i + 1] for i in range(len(text)))) == ["größer ✓"]


def test_bytes_that_are_no_text_do_not_stop_the_stage():
    assert read(b"a\xff\xfeb\n") == ["a\ufffd\ufffdb"]


def test_colours_and_empty_lines_are_dropped():
    assert read(b"\x1b[31mred\x1b[0m\n\n  \n\x1b[A") == ["red"]


def test_a_progress_bar_is_passed_on_now_and_then():
    now = iter([0.0, 1.0, 9.0, 10.5, 12.0])
    bar = b"".join(b"\r%d%%" % percent for percent in (0, 10, 90, 95, 97))
    lines = read(
        b"\r",
        *(bar[i : i + 3] for i in range(0, len(bar), 3)),
        b"\rdone\n",
        clock=lambda: next(now),
    )
    assert lines == ["0%", "95%", "done"]
