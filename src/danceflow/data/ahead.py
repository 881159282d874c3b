"""Reading ahead: the next rows come from the disk while the present ones are computed with."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from torch import Tensor

from danceflow.fields import Condition

T = TypeVar("T")


class Ahead(Generic[T]):
    """Gives what ``read`` returns for a number, and reads that of the next one on a thread.

    What is read is a function of its number, so reading ahead changes no result.

    Attributes:
        waited: seconds that were spent waiting for it so far.
    """

    def __init__(self, read: Callable[[int], T]) -> None:
        """Take the function that reads."""
        self._read = read
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._coming: dict[int, Future[T]] = {}
        self.waited = 0.0

    def take(self, number: int, *, last: bool = False) -> T:
        """Return what ``read`` gives for ``number``; its errors are raised here.

        Args:
            number: usually the one after that of the call before.
            last: whether no further one follows.
        """
        began = time.monotonic()
        coming = self._coming.pop(number, None) or self._thread.submit(self._read, number)
        found = coming.result()
        self.waited += time.monotonic() - began
        self._coming = {} if last else {number + 1: self._thread.submit(self._read, number + 1)}
        return found


def pinned(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor in memory that a GPU can copy from by itself; as it is for other devices."""
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def pinned_condition(condition: Condition, device: str) -> Condition:
    """Return a condition whose tensors are pinned for ``device``."""
    return Condition({name: pinned(t, device) for name, t in condition.tensors.items()})
