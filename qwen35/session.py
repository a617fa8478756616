"""A session: one timeline of tokens. Ids wanted -> go back to the last usable point -> append what
is missing.

A recurrent state cannot be cut back to an arbitrary token, so a session keeps a few snapshots
("marks") where prompts tend to part again: at the end of a prompt, before the generation prompt,
and where two earlier prompts parted. What a mark holds was computed from exactly the ids before it,
so a reused prefix is the prefix that would be computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import ClosedError, ModelFormatError
from .lifecycle import Gate, guarded
from .prompt import Prompt, check_fits

if TYPE_CHECKING:
    from typing import Self

    from . import _core
    from .model import Model

MARK_LIMIT = 2  # the first (shared by many prompts) and the newest; each holds a recurrent state
MARK_GAP = 16  # tokens; a nearer mark would save less than its extra pass over the weights costs


@dataclass(frozen=True)
class Snapshot:
    """A point of a session's timeline to come back to."""

    position: int
    keys: NDArray[np.int64]  # [position] token ids, and what stands for images (Prompt.keys)
    core: _core.Snapshot

    @property
    def nbytes(self) -> int:
        """Bytes of recurrent state held; K/V pages are shared with the session."""
        return self.core.nbytes


class Session:
    """One mutable timeline of a model, used by one thread at a time (BusyError otherwise). Made by
    `Model.session()`.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        self._model: Any = model  # a Model; None while the session is idle in its pool
        self._core: _core.Session | None = core
        self._marks: list[Snapshot] = []  # by position, all on this timeline
        self._seen = np.empty(0, np.int64)  # keys of the prompt synced last; see _keys()

    # What it is

    @property
    def position(self) -> int:
        """Tokens in the timeline."""
        return self._open().position

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return self._open().context

    @property
    def ids(self) -> NDArray[np.int32]:
        """The tokens of the timeline, int32 [position]."""
        return self._open().ids

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits after the last token, float32 [V]; None before the first. Computed when they are
        first asked for.
        """
        return self._open().logits

    @property
    def nbytes(self) -> int:
        """Bytes held for K/V and recurrent state."""
        return self._open().nbytes

    # What it does

    @guarded
    def sync(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]] | Prompt,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Make the timeline exactly `prompt` and return how many of its tokens were there already.

        `progress(done, total)` is called as tokens are appended. An interrupt leaves the tokens
        that were done.
        """
        self._model._checkpoint.check_unchanged()
        made = self._model._prompts.numeric(prompt, where="prompt")
        check_fits(len(made), context=self._open().context, room=0)
        return self._sync(made, progress=progress)

    @guarded
    def snapshot(self) -> Snapshot:
        """This point of the timeline. Cheap: the recurrent state is copied, K/V pages are
        shared.
        """
        core = self._open()
        return Snapshot(core.position, self._keys(), core.snapshot())

    @guarded
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this session, or of one it was forked from or that was forked
        from it.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(
                f"restore() takes what snapshot() returned, got {type(snapshot).__name__}"
            )
        core = self._open()
        shared = common_prefix(self._keys(), snapshot.keys)
        core.restore(snapshot.core)
        self._seen = snapshot.keys
        self._marks = [mark for mark in self._marks if mark.position <= shared]

    @guarded
    def fork(self) -> Session:
        """A second session with this one's past and a future of its own."""
        twin: Session = self._model._adopt(self._open().fork())
        twin._marks = list(self._marks)
        twin._seen = self._seen
        return twin

    @guarded
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline to a file (safetensors layout, replaced as a whole or not at all)."""
        from .session_file import write_session

        arrays = {**self._open().dump(), "keys": self._keys()}
        write_session(path, arrays, fingerprint=self._model._checkpoint.fingerprint())

    @guarded
    def load(self, path: str | os.PathLike[str]) -> None:
        """Become the timeline `save()` wrote, by the same model. ModelFormatError if the file is
        damaged or another's.
        """
        from .session_file import read_session

        arrays = read_session(path, fingerprint=self._model._checkpoint.fingerprint())
        core, keys = self._open(), arrays.get("keys", np.empty(0, np.int64))
        if keys.dtype != np.int64 or keys.ndim != 1:
            raise ModelFormatError(
                f"{path}: keys of {keys.dtype} {list(keys.shape)}, expected int64 [tokens]; save "
                "the session again"
            )
        core.undump(arrays)
        self._seen = keys
        self._marks = []

    def close(self) -> None:
        """Free the timeline. May be called again."""
        self._core = None
        self._marks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._core is None:
            return "<qwen35.Session closed>"
        return f"<qwen35.Session {self._core.position:,} of {self._core.context:,} tokens>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled or copied; use fork(), or save(path) and load(path)"
        )

    # How prefixes are reused (the pool and the token stream call these)

    def _model_gate(self) -> Gate:
        return self._model._gate  # type: ignore[no-any-return]

    def _open(self) -> _core.Session:
        if self._core is None:
            raise ClosedError(
                "this session was closed; ask the model for a new one with model.session()"
            )
        return self._core

    def _keys(self) -> NDArray[np.int64]:
        """Keys of the timeline: its ids, and where the last prompt showed something what that
        was.
        """
        keys = self._open().ids.astype(np.int64)
        seen = self._seen[: len(keys)]
        keys[: len(seen)][seen < 0] = seen[seen < 0]
        return keys

    def _sync(
        self,
        prompt: Prompt,
        *,
        branch: int = 0,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """`sync` for a checked prompt; `branch` is where an earlier one parted from it."""
        reused = self._rewind(prompt)
        core = self._open()
        for end in [*self._splits(prompt, start=reused, branch=branch), len(prompt)]:
            start = core.position
            if start < end:
                core.prefill(
                    prompt.ids[start:end],
                    progress=shifted(progress, start, len(prompt)),
                    **self._model._shown(prompt, start, end),
                )
            self._mark()
        return reused

    def _branch(self, position: int, model: Model) -> Session:
        """A second session that stands at the mark at `position`."""
        twin = model._new_session(self.context)
        twin._marks = [mark for mark in self._marks if mark.position <= position]
        twin._open().restore(twin._marks[-1].core)
        twin._seen = twin._marks[-1].keys
        return twin

    def _usable(self, keys: NDArray[np.int64]) -> tuple[int, int]:
        """(tokens of a prompt this session can start from, tokens that its timeline shares)."""
        past = self._keys()
        shared = common_prefix(past, keys)
        if shared == len(past) and (shared < len(keys) or self._open().has_logits):
            return shared, shared
        usable = (mark.position for mark in self._marks if mark.position <= shared)
        return max(usable, default=0), shared

    def _rewind(self, prompt: Prompt) -> int:
        """Go back to the longest usable prefix of a prompt, which comes next; returns its
        length.
        """
        core = self._open()
        usable, shared = self._usable(prompt.keys)
        self._seen = prompt.keys
        self._marks = [mark for mark in self._marks if mark.position <= shared]
        if usable == core.position:
            return usable
        if usable:
            core.restore(self._marks[-1].core)
        else:
            self._core = self._model._core_session(core.context)
        return usable

    def _splits(self, prompt: Prompt, *, start: int, branch: int = 0) -> list[int]:
        """Where to stop on the way through a prompt to set a mark: where an earlier prompt parted,
        and before the last message, which is the generation prompt and is written otherwise once
        the answer is part of the past.
        """
        message = self._model._prompts.last_message_start(prompt.ids)
        ends: list[int] = []
        for end in sorted({branch, message}):
            if end - (ends[-1] if ends else start) >= MARK_GAP and end < len(prompt):
                ends.append(end)
        return ends

    def _mark(self) -> None:
        """Keep this point of the timeline."""
        core = self._open()
        if self._marks and self._marks[-1].position == core.position:
            return
        self._marks.append(Snapshot(core.position, self._keys(), core.snapshot()))
        if len(self._marks) > MARK_LIMIT:
            del self._marks[1]


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many leading keys two timelines share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def shifted(
    progress: Callable[[int, int], object] | None, before: int, total: int
) -> Callable[[int, int], object] | None:
    """`progress` for one piece of a prompt of `total` tokens, `before` of which are done."""
    if progress is None:
        return None
    return lambda done, _piece: progress(before + done, total)
