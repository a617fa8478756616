"""A progress bar for prompts and videos that take a while: on stderr, on a terminal or in a
notebook only, after a second of work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 1.0

Progress = bool | Callable[[int, int], object] | None


def is_interactive() -> bool:
    """Whether somebody watches: stderr is a terminal, or the code runs in a notebook kernel."""
    shell = sys.modules.get("IPython")
    in_kernel = shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})
    return in_kernel or (sys.stderr is not None and sys.stderr.isatty())


class Bar:
    """Called with (done, in all); draws nothing for what is done within PATIENCE_S."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._start = time.perf_counter()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if done >= total or time.perf_counter() - self._start < PATIENCE_S:
                return
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=total, desc=self._what, unit=self._unit, leave=False, file=sys.stderr
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def prefill_progress(
    progress: Progress,
) -> tuple[Callable[[int, int], object] | None, Callable[[], None]]:
    """The callback for a prefill and what to call after it. None: a bar if somebody watches; True,
    False: a bar or none.
    """
    if callable(progress):
        return progress, _nothing
    bar = bar_for(progress, "prompt", "token")
    return (None, _nothing) if bar is None else (bar, bar.close)


def bar_for(progress: Progress, what: str, unit: str) -> Bar | None:
    """A bar where one is wanted: True, or None and somebody watches."""
    if progress is True or (progress is None and is_interactive()):
        return Bar(what, unit)
    return None


def _nothing() -> None:
    pass
