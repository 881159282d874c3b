"""One number ahead is read on a thread, whatever the order; errors come to who asks."""

import threading

import pytest
import torch

from danceflow.data.ahead import Ahead, pinned_condition
from danceflow.fields import Condition


def test_the_next_number_is_read_while_the_present_one_is_used() -> None:
    threads, reading = {}, threading.Event()

    def read(number: int) -> int:
        threads[number] = threading.current_thread()
        if number == 4:
            reading.set()
        return number * number

    ahead = Ahead(read)
    assert ahead.take(3) == 9
    assert reading.wait(timeout=60)  # nobody has asked for it
    assert ahead.take(4) == 16
    assert ahead.take(9, last=True) == 81
    assert ahead.take(2, last=True) == 4
    assert set(threads) <= {3, 4, 5, 9, 2}
    assert threading.current_thread() not in threads.values()
    assert ahead.waited > 0


def test_an_error_is_raised_when_its_number_is_taken() -> None:
    def read(number: int) -> int:
        return 1 // (number - 1)

    ahead = Ahead(read)
    assert ahead.take(0) == -1
    with pytest.raises(ZeroDivisionError):
        ahead.take(1)
    assert ahead.take(2, last=True) == 1


def test_nothing_is_pinned_for_a_processor() -> None:
    condition = Condition({"a": torch.ones(2)})
    found = pinned_condition(condition, "cpu")
    assert found.tensors["a"] is condition.tensors["a"]
