"""A disk that has little room: the system's limit on the size of a file."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def little_room(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond some bytes within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
