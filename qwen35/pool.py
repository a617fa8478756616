"""Idle sessions kept for their past: a new request starts from the one that shares most with its
prompt.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .model import Model
    from .session import Session

IDLE_LIMIT = 2  # sessions; each holds K/V for its past and a few snapshots


class SessionPool:
    """At most IDLE_LIMIT idle sessions, least recently used first. Its methods may be called from
    any thread.
    """

    def __init__(self) -> None:
        self._idle: list[Session] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self, keys: NDArray[np.int64], model: Model) -> tuple[Session, int]:
        """A session for a prompt of these keys, and where that prompt parts from an earlier one (0:
        nowhere worth a mark).

        A session that would lose more of its past than the prompt can use stays as it is while
        there is room, and a second one branches off at the last usable mark.
        """
        with self._lock:
            prefixes = [session._usable(keys) for session in self._idle]
            branch = max((shared for _, shared in prefixes), default=0)
            best = max(range(len(prefixes)), key=lambda i: (prefixes[i][0], i), default=None)
            if best is not None and prefixes[best][0] > 0:
                session, usable = self._idle[best], prefixes[best][0]
                if 2 * usable >= session.position or len(self._idle) >= IDLE_LIMIT:
                    self._idle.pop(best)._model = model
                    return session, branch
                return session._branch(usable, model), branch
            if len(self._idle) >= IDLE_LIMIT:
                self._idle.pop(0).close()
        return model._new_session(), branch

    def give_back(self, session: Session) -> None:
        """Keep a session for later requests, or free it where the pool is closed."""
        with self._lock:
            if self._closed:
                session.close()
                return
            session._model = None  # an idle session does not keep its model alive
            self._idle.append(session)
            if len(self._idle) > IDLE_LIMIT:
                self._idle.pop(0).close()

    def close(self) -> None:
        """Free all idle sessions, and from now on those that come back."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
