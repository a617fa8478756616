"""Progress while a model loads: calls of the user's function, or a bar on stderr where somebody
watches.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .progress import is_interactive

Report = Callable[[int, int, str], object]  # bytes done, bytes in all, stage
LoadProgress = bool | Report | None

# What stages count that do not count bytes.
UNITS = {"calibrate": " tokens", "try types": " matrices", "weigh matrices": " measurements"}
PATIENCE_S = 0.3  # a load this fast shows no bar


def check_progress(progress: LoadProgress) -> None:
    """TypeError for what is neither a function, a bool nor None."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress={progress!r}: expected a function of (done_bytes, total_bytes, stage), "
            "True, False or None"
        )


def wants_bar(progress: LoadProgress) -> bool:
    """Whether a bar is drawn: asked for, or left open and somebody watches."""
    return progress is True or (progress is None and is_interactive())


@contextmanager
def reporting(progress: LoadProgress) -> Iterator[Report]:
    """The function that stages of loading call; its bar is gone at the end of the block."""
    if callable(progress):
        yield progress
    elif wants_bar(progress):
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _silent


class _Bar:
    """One bar a stage."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, done: int, total: int, stage: str) -> None:
        if stage != self._stage:
            self.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tqdm's advice to install widgets
                from tqdm.auto import tqdm

                self._bar = tqdm(
                    total=total,
                    desc=stage,
                    unit=UNITS.get(stage, "B"),
                    unit_scale=stage not in UNITS,
                    delay=PATIENCE_S,
                    leave=False,
                    file=sys.stderr,
                )
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


def _silent(done: int, total: int, stage: str) -> None:
    pass


def hub_bar(progress: LoadProgress) -> type | None:
    """The bar class for huggingface_hub: None (its own bars), or one that draws nothing and may
    call a function.
    """
    if wants_bar(progress):
        return None
    from tqdm import tqdm

    class Quiet(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "gui": False})

        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def clear(self, *args: Any, **kwargs: Any) -> None:
            pass

        def close(self) -> None:
            self.leave = False
            super().close()

        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            if callable(progress) and self._counts_bytes:
                progress(int(self.n), int(self.total or 0), "download")
            return moved

    return Quiet
