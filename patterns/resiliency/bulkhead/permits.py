"""Permits and the line before them: who is in, who waits, and who is next. No clock, no events."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from threading import Lock, get_ident

__all__ = ["Permits", "Waiter"]


class Permits:
    """Permits for tasks of several event loops and for threads.

    A permit is an item of a list, and `list.pop` and `list.append` are atomic: while nobody waits, a call
    takes no lock.

    Args:
        limit: how many there are.
        max_waiting: how many may wait for one.
    """

    def __init__(self, limit: int, max_waiting: int) -> None:
        self._lock = Lock()  # guards what follows, but for `_free`; never held over a call or a listener
        self._limit = limit
        self._max_waiting = max_waiting
        self._free = [True] * limit  # the permits that are in
        self._excess = 0  # permits that are out and will not come back: the limit was lowered
        self._line: OrderedDict[Waiter, None] = OrderedDict()
        self._quiet = True  # nobody waits and there is no excess: a free permit may just be taken

    # --8<-- [start:permits]
    def _enter(self) -> bool | Waiter:
        """Take a permit (True), or a place in the line; False if there is neither."""
        entered: bool | Waiter = False
        with self._lock:
            if not self._line and not self._excess and self._pop():
                entered = True
            elif len(self._line) < self._max_waiting:
                entered = Waiter(asyncio.get_running_loop().create_future())
                self._line[entered] = None
                self._quiet = False
        self._settle()  # also what came back before `_quiet` was seen
        return entered

    def _give_back(self) -> None:
        """Give one permit back, from any task or thread."""
        self._free.append(True)
        if not self._quiet:
            self._settle()

    def _withdraw(self, waiter: Waiter) -> None:
        """Take `waiter` out of the line; if it is not there any more, pass on what it was granted."""
        if self._line.pop(waiter, waiter) is waiter and not waiter.refused:
            self._free.append(True)
        self._settle()

    def _settle(self) -> None:
        """Let free permits end the excess first, then go to those who wait, in order.

        It never waits for the lock, for it may run in a finalizer, in the middle of another call of this
        thread. Whoever has the lock comes here afterwards, and finds what was left.
        """
        while not self._quiet and self._lock.acquire(blocking=False):
            woken = []
            try:
                while self._excess and self._pop():
                    self._excess -= 1
                while self._line and self._pop():
                    try:
                        waiter, _ = self._line.popitem(last=False)
                    except KeyError:  # the last one has left the line in this moment
                        self._free.append(True)
                    else:
                        woken.append(waiter)
                self._quiet = not self._excess and not self._line
            finally:
                self._lock.release()
            self._wake(woken)
            if not self._free or not (self._excess or self._line):
                break

    # --8<-- [end:permits]

    # --8<-- [start:resize]
    def _change(self, limit: int) -> int:
        """Change the limit and return the old one; 0 closes for good."""
        with self._lock:
            old = self._limit
            if old:
                self._limit = limit
                self._excess += max(0, old - limit)
                self._free.extend([True] * max(0, limit - old))
                self._quiet = False
        self._settle()
        return old

    # --8<-- [end:resize]

    def _dismiss(self) -> None:
        """Send all who wait away, and let nobody wait any more."""
        with self._lock:
            self._max_waiting = 0
            refused = list(self._line)
            for waiter in refused:
                waiter.refused = True
            self._line.clear()
        self._settle()
        self._wake(refused)

    @property
    def limit(self) -> int:
        """Calls that may run at once; 0 when closed."""
        return self._limit

    @property
    def running(self) -> int:
        """Permits that are out."""
        with self._lock:
            running = self._limit + self._excess - len(self._free)
        self._settle()  # what came back meanwhile found the lock taken
        return running

    @property
    def waiting(self) -> int:
        """Calls that wait for a permit."""
        return len(self._line)

    def _take(self) -> bool:
        """Take a free permit if nobody waits for one; a permit that just comes back may be missed."""
        return self._quiet and self._pop()

    def _pop(self) -> bool:
        try:
            return self._free.pop()
        except IndexError:
            return False

    def _wake(self, woken: list[Waiter]) -> None:
        here = get_ident()
        for waiter in woken:
            try:
                if waiter.thread == here:
                    waiter.wake()
                else:
                    waiter.future.get_loop().call_soon_threadsafe(waiter.wake)
            except RuntimeError:  # its loop was closed while it stood in the line
                if not waiter.refused:
                    self._free.append(True)


class Waiter:
    """One who stands in the line. Who takes it out of there decides what becomes of it."""

    __slots__ = ("future", "refused", "thread")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.thread = get_ident()
        self.refused = False

    def wake(self) -> None:
        """Let it go on; in its own thread."""
        if not self.future.done():
            self.future.set_result(None)
