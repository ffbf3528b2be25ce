"""Ctrl-C between two steps of a run, not amid one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def whole_steps() -> Iterator[Callable[[], None]]:
    """Let the first interrupt wait for the end of a step; a second one does not.

    Nothing changes in threads that interrupts do not reach, within another such context, and where an interrupt has a
    handler of somebody's own.

    Yields:
        To be called between two steps: it raises the interrupt that waits.

    Raises:
        KeyboardInterrupt: at the end, if one still waits.
    """
    waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            signal.default_int_handler(number, frame)
        waiting = True

    def between() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield between
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield between
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        between()
