"""The eyes of one model: what messages and arguments hold -> VisionInputs -> features, each picture
encoded once.

The pictures of a request are read when its prompt is made, and encoded when the session gets to
them. Features are kept by content, the least recently used go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UnsupportedModelError
from .fields import nearest
from .progress import Progress, bar_for
from .vision_prompt import KINDS, Placeholders, check_room

if TYPE_CHECKING:
    from . import _core
    from .loading import Checkpoint
    from .media import MediaLimits
    from .messages import MediaPart
    from .tokenizer import Tokenizer
    from .vision_input import VisionInput

CACHE_BYTES = 256 << 20  # of features: 65,536 tokens of the 0.8B
SIZES = ("min_pixels", "max_pixels")
OPTIONS = {
    "image": SIZES,
    "video": (*SIZES, "fps", "sample_fps", "num_frames", "start", "end"),
}
Poll = Callable[[], object]


class Vision:
    """Reads and encodes images and videos for one model. Shared by threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        enabled: bool,
        limits: MediaLimits | None,
        context: int,
        progress: Progress = None,
    ) -> None:
        self.enabled = enabled
        self._progress = progress
        self._checkpoint = checkpoint
        self._limits = limits
        self._context = context
        self.placeholders = Placeholders(checkpoint.config, tokenizer)
        self._settings: Any = None
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, parts: Sequence[MediaPart]) -> tuple[list[VisionInput], list[VisionInput]]:
        """The images and the videos of a request, in order; `part.path` opens what is said of one.

        Raises UnsupportedModelError for a model without a tower, ValueError for too many of them or
        an option that there is not, MediaError for what cannot be read, ContextLengthError where
        they alone do not fit.
        """
        if not parts:
            return [], []
        self._check_enabled(parts[0].path)
        from .media import MediaLimits

        limits = self._limits or MediaLimits()
        if len(parts) > limits.images:
            raise ValueError(
                f"{len(parts)} images and videos in one request, at most {limits.images}; load the "
                "model with media_limits=MediaLimits(images=...) to allow more"
            )
        read = [self._read(part, limits) for part in parts]
        check_room(read, context=self._context)
        return [r for r in read if r.kind == "image"], [r for r in read if r.kind == "video"]

    def _read(self, part: MediaPart, limits: MediaLimits) -> VisionInput:
        from .vision_input import image_input, video_input

        options = {key: value for key, value in part.part.items() if key not in ("type", part.kind)}
        for key in options:
            if key not in OPTIONS[part.kind]:
                hint = nearest(str(key), OPTIONS[part.kind])
                raise ValueError(
                    f"{part.path}: unknown key {key!r:.80}{hint}; beside the {part.kind} itself: "
                    f"{', '.join(OPTIONS[part.kind])}"
                )
        image_settings, video_settings = self._both_settings()
        where = f"{part.path}.{part.kind}" if "type" in part.part else part.path
        if part.kind == "image":
            return image_input(
                part.part["image"], image_settings, where=where, limits=limits, **options
            )
        bar = bar_for(self._progress, "video", "frame")
        try:
            return video_input(
                part.part["video"],
                video_settings,
                where=where,
                limits=limits,
                progress=bar,
                **options,
            )
        finally:
            if bar is not None:
                bar.close()

    def _both_settings(self) -> Any:
        if self._settings is None:
            from .vision_settings import read_settings

            vision = self._checkpoint.config.vision
            self._settings = read_settings(
                self._checkpoint.preprocessor,
                self._checkpoint.video_preprocessor,
                patch_size=vision.patch_size,
                temporal_patch_size=vision.temporal_patch_size,
                merge_size=vision.spatial_merge_size,
                where=str(self._checkpoint.path),
            )
        return self._settings

    def _check_enabled(self, where: str) -> None:
        if self.enabled:
            return
        has = "was loaded with vision=False" if self._checkpoint.has_vision else "has no tower"
        raise UnsupportedModelError(
            f"{where}: the model {self._checkpoint.name!r} {has}; load one that can see, or leave "
            "images and videos out"
        )

    def features(
        self, core: _core.Model, media: VisionInput, *, poll: Poll | None = None
    ) -> NDArray[np.float32]:
        """Features float32 [tokens, 1 + DeepStack layers, D], read-only. `poll` is called every
        20 ms; what it raises ends the work.
        """
        with self._lock:
            known = self._kept.get(media.digest)
            if known is not None:
                self._kept.move_to_end(media.digest)
                return known
        _, rows, cols = media.grid_thw
        times, per_time = media.grid_thw[0], media.tokens // media.grid_thw[0]
        features = np.empty((media.tokens, *core.feature_shape), np.float32)
        for t in range(times):  # one temporal patch at a time: no pixels of a whole video
            features[t * per_time : (t + 1) * per_time] = core.encode_vision(
                media.patches(t), (1, rows, cols), poll=poll
            )
        features.setflags(write=False)
        with self._lock:
            self._kept[media.digest] = features
            while sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        return features

    def clear(self) -> None:
        """Forget all features."""
        with self._lock:
            self._kept.clear()


def parts_of(images: Sequence[Any], videos: Sequence[Any]) -> list[MediaPart]:
    """The arguments images= and videos= as parts of a message: each entry is the image or video, or
    a dict of it and its options ({"video": frames, "fps": 4}).
    """
    from .messages import MediaPart

    parts = []
    for kind, given in zip(KINDS, (images, videos), strict=True):
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
            raise TypeError(
                f"{kind}s: expected a list of {kind}s, got {type(given).__name__}; put a single "
                "one in a list"
            )
        for index, one in enumerate(given):
            path = f"{kind}s[{index}]"
            part = one if isinstance(one, Mapping) else {kind: one}
            if kind not in part:
                raise ValueError(f"{path}.{kind}: missing, expected the {kind} under this name")
            parts.append(MediaPart(path, kind, part))
    return parts
