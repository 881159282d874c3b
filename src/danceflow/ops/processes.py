"""Which process it was: its number alone does not say, as it is given again.

A container that is restarted gives the same numbers in the same order. When a process was started
tells two of one number apart.
"""


def process_mark(process_id: int | None = None) -> str:
    """Return a word for a running process that no other process of this machine ever has.

    The time of its start counts from the machine's, so that no change of the clock changes it.

    Args:
        process_id: its number; None: this process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    import psutil

    try:
        process = psutil.Process(process_id)
        return f"{process.pid}-{round(100 * (process.create_time() - psutil.boot_time()))}"
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from error


def is_running(mark: str) -> bool:
    """Return whether the process that a mark stands for is still running.

    One that has ended and that its parent has not asked about yet, a zombie, is not.

    Args:
        mark: what ``process_mark`` returned; a number alone stands for none.
    """
    import psutil

    number = mark.partition("-")[0]
    try:
        is_it = number.isdigit() and process_mark(int(number)) == mark
        return is_it and psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
