"""An end to code of strangers that may never come back, by the system's alarm, where it has one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

__all__ = ["Overdue", "bounded"]

T = TypeVar("T")

_AGAIN = 0.5  # seconds after which it rings again: a first alarm may be caught, or lost in a destructor
_LONGEST = 1e8  # seconds; three years are no limit, and the system takes no number of any size


class Overdue(BaseException):
    """Time is up. It is no `Exception`, which a client may well catch and go on."""


def bounded(seconds: float | None, work: Callable[[], T]) -> T | None:
    """What `work` returns; None if it did not within so many seconds.

    It is interrupted only in the main thread of a process on a system with alarms (POSIX), and only where
    nobody else's alarm is due before; elsewhere, it ends when it ends. Code that is not Python's is
    interrupted when it comes back to Python, and code that catches every alarm is not.

    Args:
        seconds: None for no limit.
        work: What is to be done.
    """
    if seconds is None or not seconds < _LONGEST or not _free(seconds):
        return work()
    alarm = _Alarm(max(seconds, 1e-6))
    try:
        alarm.set()
        try:
            return _working(work, alarm)
        finally:
            alarm.put_back()
    except Overdue as overdue:
        if overdue is not alarm.overdue:
            raise
        return None


def _working(work: Callable[[], T], alarm: _Alarm) -> T:
    """The frame, known by its alarm, below which that may ring: above, it would tear our affairs apart."""
    return work()


def _free(seconds: float) -> bool:
    """Whether there is an alarm to be had."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    due = signal.getitimer(signal.ITIMER_REAL)[0]
    # A handler that is None was not set by Python, and could not be put back.
    return not 0 < due <= seconds and signal.getsignal(signal.SIGALRM) is not None


class _Alarm:
    """The one alarm of a process, borrowed.

    Args:
        seconds: When it rings.
    """

    def __init__(self, seconds: float) -> None:
        self.overdue = Overdue(f"{seconds:g} s are over")
        self._seconds = seconds
        self._begun = time.monotonic()
        self._handler: Any = signal.getsignal(signal.SIGALRM)
        self._due, self._interval = signal.getitimer(signal.ITIMER_REAL)
        self._returned = False

    def set(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN)

    def put_back(self) -> None:
        """Leave the alarm as it was found, less the time that has gone by."""
        if self._returned:
            return
        self._returned = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        if self._due:
            left = self._due - (time.monotonic() - self._begun)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6), self._interval)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._due and time.monotonic() - self._begun >= self._due:
            # What hangs withstands us; whoever has set the alarm before may know a way.
            self.put_back()
            return
        while frame is not None:
            if frame.f_code is _working.__code__ and frame.f_locals["alarm"] is self:
                raise self.overdue
            frame = frame.f_back
