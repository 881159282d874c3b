import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

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
