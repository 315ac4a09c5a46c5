"""Until when to wait, and what else ends a wait: the user, or the end of the guest.

One monotonic Deadline is made per phase and handed down; a Watch belongs to one VM. Everything in this
package that waits looks at the Watch at least every POLL seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rig.errors import Cancelled, CouldNotJudge, GuestDied, GuestHung

POLL = 0.1  # seconds: the longest that a wait goes on unaware of a cancellation or of the guest's end


@dataclass(frozen=True)
class Deadline:
    """A point in monotonic time. what: the thing waited for, in words ("the crash kernel's shell")."""

    at: float
    seconds: float
    what: str

    @classmethod
    def after(cls, seconds: float, what: str) -> Deadline:
        return cls(time.monotonic() + seconds, seconds, what)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at

    def check(self, *, tail: Callable[[], str] = str) -> None:
        """Raises GuestHung when the deadline has passed. tail: returns the last console lines; asked only then."""
        if self.passed:
            raise GuestHung(f"waited {self.seconds:.0f} s in vain for {self.what}", console=tail())


OWN_END = "the guest did it: console.log shows what it did last, qemu.log its CPUs at each reset"


@dataclass(frozen=True)
class Ending:
    """How the guest ended. reason: triple-fault, guest-reset, guest-shutdown, guest-panic, qemu-gone..."""

    reason: str
    message: str

    @property
    def by_guest(self) -> bool:
        """Whether the guest did it: not QEMU, not somebody who killed it."""
        return self.reason == "triple-fault" or self.reason.startswith("guest-")


class Watch:
    """What can cut a wait short: a cancellation by the user, or the end of the guest.

    cancel: set by the user's side, from any thread. tail: returns the last console lines, for errors.
    """

    def __init__(self, cancel: threading.Event | None = None, tail: Callable[[], str] = str) -> None:
        self._cancel = cancel or threading.Event()
        self.tail = tail
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        self._trouble: CouldNotJudge | None = None

    @property
    def ending(self) -> Ending | None:
        """How the guest ended, None while it lives."""
        return self._ending

    @property
    def broken(self) -> bool:
        """Whether check() would raise."""
        return self._cancel.is_set() or self._ended.is_set() or self._trouble is not None

    def end(self, ending: Ending) -> None:
        """Note the guest's end. The first one counts: what follows (QEMU killed) is its consequence."""
        with self._lock:
            self._ending = self._ending or ending
        self._ended.set()

    def fail(self, trouble: CouldNotJudge) -> None:
        """Note what makes going on senseless, from a thread in which nobody could catch it."""
        self._trouble = self._trouble or trouble

    def wait_for_end(self, seconds: float) -> Ending | None:
        """Wait for the guest to end. Returns how, or None after so many seconds. Raises Cancelled."""
        until = time.monotonic() + seconds
        while not self._ended.wait(min(POLL, max(0.0, until - time.monotonic()))):
            self.check_cancelled()
            if time.monotonic() >= until:
                return None
        return self._ending

    def check_cancelled(self) -> None:
        """Raises Cancelled when the user has asked to stop."""
        if self._cancel.is_set():
            raise Cancelled("stopped on request")

    def check(self) -> None:
        """Raises Cancelled when the user has asked to stop, what fail() was told, or GuestDied after its end."""
        self.check_cancelled()
        if self._trouble:
            raise self._trouble
        if self._ending:
            hint = OWN_END if self._ending.by_guest else ""  # of other ends rig.live.hint_for() knows more
            raise GuestDied(self._ending.message, console=self.tail(), hint=hint)
