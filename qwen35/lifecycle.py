"""Who is inside a model: calls are counted so that close() can wait for them, and refused after a
close or a fork.
"""

from __future__ import annotations

import os
import threading

from .errors import ClosedError, ForkError


class Gate:
    """`with gate:` around every use of the native model, in any thread, nested or not."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}  # thread -> depth
        self.closed = False

    def is_foreign(self) -> bool:
        """Whether this is a fork of the process that loaded the model."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """ForkError in a child of the process that loaded the model: its threads and locks did not
        come along.
        """
        if self.is_foreign():
            raise ForkError(
                f"the model {self._name!r} was loaded in process {self._pid} and this is its "
                f"fork {os.getpid()}; "
                'load it in the child, or start processes with the "spawn" method'
            )

    def check(self) -> None:
        """ClosedError after close(), ForkError in a forked child."""
        self.check_process()
        if self.closed:
            raise ClosedError(f"the model {self._name!r} was closed; load it again")

    def __enter__(self) -> None:
        self.check_process()
        with self._changed:
            self.check()
            me = threading.get_ident()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            me = threading.get_ident()
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                self._changed.notify_all()

    def shut(self) -> bool:
        """Refuse new calls; False if that was so already."""
        with self._changed:
            was_open, self.closed = not self.closed, True
            return was_open

    def wait_until_empty(self) -> None:
        """Wait for the calls of other threads; one's own, from within a callback, is not waited
        for.
        """
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not (self._inside.keys() - {me}))
