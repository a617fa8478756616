"""Where the time of an answer went: its native streams added up."""

from __future__ import annotations

import time
from collections.abc import Callable

from .results import Timings


class Clock:
    """Adds up the native streams of one answer."""

    def __init__(self) -> None:
        self.started = False
        self._began = 0.0
        self._ttft_s = 0.0
        self._sums = {"prompt_tokens": 0.0, "prefill_s": 0.0, "decode_tokens": 0.0, "decode_s": 0.0}
        self.bar_close: Callable[[], None] = lambda: None

    def start(self) -> None:
        """The answer begins."""
        self.started, self._began = True, time.perf_counter()

    def first_token(self) -> None:
        """The first token is there."""
        self._ttft_s = time.perf_counter() - self._began
        self.bar_close()

    def add(self, timings: dict[str, float], *, decode: bool) -> None:
        """Add what a native stream took; `decode` tells whether it decoded."""
        for name in self._sums:
            if decode or not name.startswith("decode"):
                self._sums[name] += timings.get(name, 0.0)

    def timings(self) -> Timings:
        """All of it."""
        return Timings(
            prefill_s=self._sums["prefill_s"],
            decode_s=self._sums["decode_s"],
            ttft_s=self._ttft_s,
            prefill_tokens=int(self._sums["prompt_tokens"]),
            decode_tokens=int(self._sums["decode_tokens"]),
        )
