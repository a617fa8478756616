"""Where images and videos stand in a prompt: placeholders -> runs of tokens -> positions and
features.

ids with one placeholder an image or video -> every placeholder becomes as many tokens as it has
features, a video with the time before each of its temporal patches -> three rows of positions, as
`get_rope_index` of transformers' models/qwen3_5 gives them. What the tokens stand for is part of
their identity: `keys` differ where ids agree but pictures do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ContextLengthError

if TYPE_CHECKING:
    from .config import Config
    from .tokenizer import Tokenizer
    from .vision_input import VisionInput

KINDS = ("image", "video")
_PADS = re.compile(r"<\|(?:image|video)_pad\|>")
_MARKS = re.compile(r"(<\|(?:image_pad|video_pad|vision_start|vision_end)\|>)")
Features = Callable[["VisionInput"], NDArray[np.float32]]


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of a prompt that stand for one temporal patch of an image or video."""

    start: int  # index of the first token
    rows: int  # of tokens
    cols: int
    media: VisionInput
    first: int  # index of the first token among all of its image or video

    @property
    def stop(self) -> int:
        """Index behind the last token."""
        return self.start + self.rows * self.cols


@dataclass(frozen=True)
class Layout:
    """Token ids with room for every feature, and what stands where."""

    ids: NDArray[np.int32]  # [T]
    runs: tuple[Run, ...]  # by start

    def position_ids(self) -> NDArray[np.int32]:
        """[3, T]: time, height, width. Text moves all three on; a run of h x w tokens moves them on
        by the larger side, and spreads over rows and columns meanwhile.
        """
        positions = np.empty((3, len(self.ids)), np.int32)

        def count_on(start: int, stop: int, position: int) -> int:
            positions[:, start:stop] = np.arange(position, position + stop - start)
            return position + stop - start

        at = position = 0
        for run in self.runs:
            position = count_on(at, run.start, position)
            row, col = np.divmod(np.arange(run.rows * run.cols, dtype=np.int32), run.cols)
            positions[:, run.start : run.stop] = position
            positions[1, run.start : run.stop] += row
            positions[2, run.start : run.stop] += col
            position += max(run.rows, run.cols)
            at = run.stop
        count_on(at, len(self.ids), position)
        return positions

    def keys(self) -> NDArray[np.int64]:
        """[T]: the ids, and for tokens of images and videos negative numbers made of the content
        and the place in it.
        """
        keys = self.ids.astype(np.int64)
        for run in self.runs:
            start = int(run.media.digest[:15], 16) + run.first  # 60 bits
            keys[run.start : run.stop] = -1 - start - np.arange(run.rows * run.cols)
        return keys

    def head(self, length: int) -> Layout:
        """The first `length` tokens; a run that would be cut stays out, and what follows it."""
        for run in self.runs:
            if run.start < length < run.stop:
                length = run.start
        return Layout(self.ids[:length], tuple(run for run in self.runs if run.stop <= length))

    def features(self, start: int, stop: int, of: Features) -> NDArray[np.float32] | None:
        """Features [n, layers, D] of the image and video tokens among ids[start:stop]; None where
        there are none.
        """
        parts = []
        for run in self.runs:
            low, high = max(run.start, start), min(run.stop, stop)
            if low < high:
                shift = run.first - run.start
                parts.append(of(run.media)[low + shift : high + shift])
        return np.concatenate(parts) if parts else None


class Placeholders:
    """The tokens of one model that stand for images and videos, and how they are written."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token = {kind: getattr(config, f"{kind}_token_id") for kind in KINDS}
        self._start, self._end = config.vision_start_token_id, config.vision_end_token_id

    def in_text(self, text: str, *, images: int, videos: int) -> list[int]:
        """Ids of a written-out prompt. <|image_pad|> and <|video_pad|> (with <|vision_start|> and
        <|vision_end|> around them) say where the media go; where the text has none, they go before
        it. All else that looks like a control token stays plain text.
        """
        if not _PADS.search(text):
            spelled = {"image": images, "video": videos}
            head = "".join(
                f"<|vision_start|><|{kind}_pad|><|vision_end|>" * spelled[kind] for kind in KINDS
            )
            text = head + text
        ids: list[int] = []
        for part in filter(None, _MARKS.split(text)):
            ids += self._tokenizer.encode(part, special=_MARKS.fullmatch(part) is not None)
        return ids

    def lay_out(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        images: Sequence[VisionInput],
        videos: Sequence[VisionInput],
        *,
        where: str,
    ) -> Layout:
        """Make room: one placeholder for each image and video, in their order, becomes its tokens.
        An image may also have all of its placeholders already. ValueError where they do not match.
        """
        media = {"image": iter(images), "video": iter(videos)}
        ids = np.asarray(ids, dtype=np.int32)
        self._check_counts(ids, images, videos, where)
        out: list[NDArray[np.int32]] = []
        runs: list[Run] = []
        at = length = 0
        for kind, start, stop in self._runs(ids):
            out.append(ids[at:start])
            length += start - at
            one = next(media[kind])
            count = stop - start
            if count not in (1, one.tokens if kind == "image" else 1):
                raise ValueError(
                    f"{where}[{start}]: {count} {kind} placeholders in a row; expected one for the "
                    f"{kind}{f', or {one.tokens}' if kind == 'image' else ''}"
                )
            piece = self._spelled_out(one)
            for first, offset in self._places(one, piece):
                rows, cols = (side // one.settings.merge_size for side in one.grid_thw[1:])
                runs.append(Run(length + offset, rows, cols, one, first))
            out.append(np.array(piece, np.int32))
            length += len(piece)
            at = stop
        out.append(ids[at:])
        return Layout(np.concatenate(out), tuple(runs))

    def _runs(self, ids: NDArray[np.int32]) -> Iterator[tuple[str, int, int]]:
        """(kind, start, stop) of consecutive placeholders of one kind."""
        kinds = {token: kind for kind, token in self._token.items()}
        places = np.flatnonzero(np.isin(ids, list(kinds)))
        if not places.size:
            return
        breaks = np.flatnonzero((np.diff(places) > 1) | (np.diff(ids[places]) != 0)) + 1
        for group in np.split(places, breaks):
            yield kinds[int(ids[group[0]])], int(group[0]), int(group[-1]) + 1

    def _spelled_out(self, media: VisionInput) -> list[int]:
        """The tokens a placeholder becomes, as transformers' Qwen3VLProcessor writes them."""
        token = self._token[media.kind]
        per_time = media.tokens // media.grid_thw[0]
        if media.kind == "image":
            return [token] * per_time
        ids: list[int] = []
        for seconds in media.timestamps:
            ids += self._tokenizer.encode(f"<{seconds:.1f} seconds>")
            ids += [self._start, *[token] * per_time, self._end]
        return ids

    def _places(self, media: VisionInput, piece: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(index among the media's tokens, offset in `piece`) of each temporal patch's first."""
        per_time = media.tokens // media.grid_thw[0]
        places = np.flatnonzero(np.asarray(piece) == self._token[media.kind])
        for first in range(0, media.tokens, per_time):
            yield first, int(places[first])

    def _check_counts(
        self,
        ids: NDArray[np.int32],
        images: Sequence[VisionInput],
        videos: Sequence[VisionInput],
        where: str,
    ) -> None:
        found = [kind for kind, _, _ in self._runs(ids)]
        for kind, given in (("image", len(images)), ("video", len(videos))):
            if found.count(kind) != given:
                raise ValueError(
                    f"{where}: {found.count(kind)} {kind} placeholders (token {self._token[kind]}) "
                    f"and {given} {kind}s; each {kind} needs one"
                )


def check_room(media: Sequence[VisionInput], *, context: int) -> None:
    """ContextLengthError with the tokens of each where images and videos alone are too many."""
    total = sum(one.tokens for one in media)
    if total <= context:
        return
    counts: dict[str, int] = {}
    each = []
    for one in media:
        counts[one.kind] = counts.get(one.kind, 0) + 1
        each.append(f"{one.kind} {counts[one.kind]}: {one.tokens:,}")
    shown = ", ".join(each[:8]) + (", ..." if len(each) > 8 else "")
    raise ContextLengthError(
        f"images and videos have {total:,} tokens ({shown}) and the context holds {context:,}; "
        "pass max_pixels or fewer frames, or load the model with a larger context="
    )


def unplaced(config: Any, ids: NDArray[np.int32]) -> tuple[str, int, int] | None:
    """(kind, token, how many) of placeholders in ids that come without media; None: there are
    none.
    """
    for kind in KINDS:
        token = getattr(config, f"{kind}_token_id")
        count = int(np.count_nonzero(ids == token))
        if config.vision is not None and count:
            return kind, token, count
    return None
