"""A process's number is given again; its mark is not."""

import os
import subprocess
import sys

import psutil
import pytest

from danceflow.ops.processes import is_running, process_mark


def test_a_process_is_running_until_it_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_mark(process.pid)
    assert is_running(mark)
    process.communicate(b"\n")
    assert not is_running(mark)
    with pytest.raises(ProcessLookupError):
        process_mark(process.pid)


def test_a_process_that_nobody_has_asked_about_yet_has_ended_all_the_same():
    process = subprocess.Popen([sys.executable, "-c", ""])
    mark = process_mark(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_running(mark)
    process.wait()


def test_the_same_number_with_another_start_is_another_process():
    """As after the restart of a container, in which every process has the number that it had."""
    number, _, started = process_mark().partition("-")
    assert int(number) == os.getpid()
    assert is_running(f"{number}-{started}")
    assert not is_running(f"{number}-{int(started) - 1}")


@pytest.mark.parametrize("mark", ["", "1", "nobody", "-1-5", "99999999999999-1"])
def test_what_is_no_mark_stands_for_no_process(mark):
    assert not is_running(mark)


def test_a_number_alone_stands_for_no_process():
    assert not is_running(str(os.getpid()))


def test_a_clock_that_is_set_changes_no_mark(monkeypatch):
    mark, began = process_mark(), psutil.boot_time()
    created = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: began + 3600)  # it goes along, as in /proc
    assert is_running(mark)
