"""Who is inside a model: calls are known, so that close() can wait for them, and refused after a
close or a fork.

Ctrl-C may strike between any two steps of Python code, also right after a lock was taken or inside
an `__exit__`. So nothing here is counted up and down: a call is an object that its own `finally`
marks as over, and locks are taken by `with` alone, which CPython does not interrupt.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, TypeVar

from .errors import ClosedError, ForkError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
POLL_S = 0.001


class Call:
    """One use of a model by one thread. The frame that made it sets `over` in its `finally`."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = False

    def is_elsewhere(self) -> bool:
        """Whether another thread is at it."""
        return not self.over and self.thread != threading.get_ident()


class Gate:
    """Lets calls into a model until it is shut."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._calls: list[Call] = []
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
                f"fork {os.getpid()}; load it in the child, or start processes with the "
                '"spawn" method'
            )

    def check(self) -> None:
        """ClosedError after close(), ForkError in a forked child."""
        self.check_process()
        if self.closed:
            raise ClosedError(f"the model {self._name!r} was closed; load it again")

    def enter(self, call: Call) -> None:
        """Let a call in, until it is over. Raises as `check` does."""
        self.check_process()
        with self._lock:
            self.check()
            self._calls = [other for other in self._calls if not other.over]
            self._calls.append(call)

    def shut(self) -> None:
        """Refuse new calls."""
        with self._lock:
            self.closed = True

    def wait_until_empty(self) -> None:
        """Wait for the calls of other threads; one's own, from within a callback, is not waited
        for.
        """
        while any(call.is_elsewhere() for call in list(self._calls)):
            time.sleep(POLL_S)


def guarded(method: F) -> F:
    """A method of a model or session that is inside the model's gate while it runs."""

    @wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = Call()
        try:
            self._model_gate().enter(call)
            return method(self, *args, **kwargs)
        finally:
            call.over = True

    return inside  # type: ignore[return-value]


class Registry(Generic[T]):
    """A weak set that threads may add to while another one reads it."""

    def __init__(self) -> None:
        self._items: dict[int, weakref.ref[T]] = {}

    def add(self, item: T) -> None:
        """Know of `item` as long as it lives."""
        key, items = id(item), self._items
        items[key] = weakref.ref(item, lambda _: items.pop(key, None))

    def alive(self) -> list[T]:
        """What is still there."""
        found = (ref() for ref in list(self._items.values()))
        return [item for item in found if item is not None]
