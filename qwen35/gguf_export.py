"""A checkpoint -> a GGUF file that llama.cpp and this package load, and one beside it that sees.

Tensors go one by one: released order -> the order of GGUF files (value heads tiled, norms + 1,
-exp(A_log), the convolution without its middle axis) -> blocks -> the file. Of a GGUF file the
tensors lie in that order already: what is not encoded anew is carried over byte by byte, and the
keys with it. Matrices that a recipe leaves keep their stored type; vectors and convolutions become
F32, the vision tower's matrices keep theirs.
"""

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, stored_type
from .calibrate import MAX_TOKENS, token_ids
from .calibrate import windows as cut
from .checkpoint import Checkpoint, mtp_tensors
from .errors import ModelFormatError, UnsupportedModelError
from .gguf_checkpoint import GgufTensors
from .gguf_export_keys import kept_keys, kept_text_keys, text_keys, vision_keys
from .gguf_file import GgufModel
from .gguf_names import CONV_SUFFIX, PATCH, Source, expanded, source_of
from .gguf_types import BY_NAME, GgmlType
from .gguf_write import OutTensor, Report, Share, check_space, pending_gguf, refuse_existing
from .imatrix import Importance, importance_of, read_imatrix
from .json_file import shown
from .load_progress import Report as StagedReport
from .machine import default_threads
from .quantize import RECIPES, budget_bytes, encode_in_bands, plan

KEEP = "keep"  # the recipe that quantizes nothing
VISUAL = "model.visual."
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Exported:
    """What was written. Bytes are those of the text model's tensors, before and after."""

    path: Path
    vision_path: Path | None
    bytes_before: int
    bytes_after: int
    elements: int

    @property
    def bits_per_weight(self) -> float:
        """Of the text model."""
        return 8 * self.bytes_after / self.elements


def check_target_recipe(name: str) -> str:
    """The recipe's own spelling; UnsupportedModelError listing all for another word."""
    known = (*RECIPES, KEEP)
    if name.lower() not in known:
        raise UnsupportedModelError(f"type {shown(name)}: expected one of {', '.join(known)}")
    return name.lower()


def export(
    checkpoint: Checkpoint,
    path: Path,
    recipe: str,
    *,
    mtp: bool = True,
    vision: bool = True,
    imatrix: Path | None = None,
    calibrate: str | Sequence[int] | NDArray[np.integer[Any]] | None = None,
    special: bool = False,
    tokens: int = MAX_TOKENS,
    overwrite: bool = False,
    threads: int | None = None,
    report: StagedReport | None = None,
) -> Exported:
    """Write the text model to `path`, a name in .gguf, and the tower to mmproj-<stem>-<type>.gguf
    beside it. Both get their names when both are written, the tower first: a `path` that is there
    has all it needs, and a run that was killed leaves no tower that would stop the next one.

    calibrate: a text like those the model is for, or its token ids; the recipe's bytes go where
    they count on it, and blocks are fitted to it (calibrated.py). Instead of imatrix. special: it
    spells out special tokens, as a text of chats does. tokens: of it that are read at most.

    Raises FileExistsError, OSError (disk), ModelFormatError (NaN or infinity, an imatrix of another
    model), UnsupportedModelError for what GGUF has no way to say.
    """
    recipe = check_target_recipe(recipe)
    if path.suffix.lower() != ".gguf":
        raise ValueError(f"{path}: expected a name that ends in .gguf")
    refuse_existing(path, overwrite)
    if imatrix is not None and calibrate is not None:
        raise ValueError("imatrix and calibrate: expected one of them, not both")
    importance = {} if imatrix is None else read_imatrix(imatrix)
    windows = None
    if calibrate is not None:
        windows = cut(token_ids(checkpoint, calibrate, special=special), limit=tokens)
    text = _text_file(
        checkpoint,
        recipe,
        mtp=mtp,
        importance=importance,
        windows=windows,
        threads=threads or default_threads(),
        report=report,
    )
    seen = _vision_file(checkpoint, path) if vision and checkpoint.has_vision else None
    if seen is not None:
        refuse_existing(seen.path, overwrite)
        check_space(path.parent, text.nbytes + seen.nbytes)

    def stage(name: str) -> Report | None:
        return None if report is None else lambda done, total: report(done, total, name)

    with contextlib.ExitStack() as undo, contextlib.ExitStack() as files:
        files.enter_context(text.pending(path, overwrite=overwrite, report=stage("quantize")))
        if seen is not None:
            if not seen.path.exists():
                undo.callback(seen.path.unlink, missing_ok=True)
            files.enter_context(
                seen.pending(seen.path, overwrite=overwrite, report=stage("vision"))
            )
        files.close()  # the last one first: the tower gets its name, then the text
        undo.pop_all()
    names = _text_names(checkpoint, mtp)
    return Exported(
        path=path,
        vision_path=None if seen is None else seen.path,
        bytes_before=sum(checkpoint.tensors.span(name).nbytes for name in names),
        bytes_after=text.nbytes,
        elements=sum(math.prod(checkpoint.tensors.span(name).shape) for name in names),
    )


@dataclass(frozen=True)
class _File:
    keys: dict[str, Any]
    tensors: list[OutTensor]
    path: Path = Path()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def pending(
        self, path: Path, *, overwrite: bool, report: Report | None
    ) -> contextlib.AbstractContextManager[int]:
        return pending_gguf(path, self.keys, self.tensors, overwrite=overwrite, report=report)


# The text model


def _text_names(checkpoint: Checkpoint, mtp: bool) -> list[str]:
    """The tensors of the text file, in the core's order, those of MTP behind."""
    from . import _core

    geometry = checkpoint.config.geometry(vision=False)
    names = [name for name, _ in _core.expected_tensors(geometry)]
    if _keeps_mtp(checkpoint, mtp):
        names += mtp_tensors(checkpoint.config.text)
    return names


def _keeps_mtp(checkpoint: Checkpoint, mtp: bool) -> bool:
    """Whether the MTP layers are written: wanted, there, and of the kind that is known."""
    text = checkpoint.config.text
    known = text.mtp_num_hidden_layers and not text.mtp_use_dedicated_embeddings
    return bool(mtp and known and checkpoint.has_mtp)


def _text_file(
    checkpoint: Checkpoint,
    recipe: str,
    *,
    mtp: bool,
    importance: Importance,
    windows: list[NDArray[np.int32]] | None,
    threads: int,
    report: StagedReport | None,
) -> _File:
    text, tensors = checkpoint.config.text, checkpoint.tensors
    names = _text_names(checkpoint, mtp)
    types: dict[str, str] = {}
    options = {"layers": text.num_hidden_layers, "tied": text.tie_word_embeddings}
    if recipe != KEEP:
        planned = dict(plan(tensors, recipe, **options))
        types = {name: planned[name] for name in names if name in planned}
    calibrated = None
    if windows is not None and types:
        from .calibrated import Calibrated

        calibrated = Calibrated(
            checkpoint,
            recipe,
            types,
            windows,
            budget=budget_bytes(types, tensors, recipe, **options),
            matrix=functools.partial(_matrix, checkpoint),
            orders=_column_orders(checkpoint, types),
            threads=threads,
            report=report,
        )
        types |= calibrated.types()
    out, measured = [], 0
    for name in names:
        if name not in types:
            out += _as_stored(checkpoint, name)
            continue
        (stored,) = _source(checkpoint, name).stored
        shape = tensors.span(name).shape
        columns = importance_of(importance, stored, shape[1])
        measured += columns is not None
        how: Any = functools.partial(encode_in_bands, importance=columns, threads=threads)
        if calibrated is not None:
            how = functools.partial(calibrated.encode, name)
        make = functools.partial(_encoded, checkpoint, name, types[name], how)
        out.append(OutTensor(stored, BY_NAME[types[name].upper()], shape, make))
    if importance and not measured and types:
        raise ModelFormatError(
            f"imatrix: none of its {len(importance)} tensors is one of the {len(types)} that are "
            "quantized; it was measured on another model"
        )
    mtp = _keeps_mtp(checkpoint, mtp)
    if isinstance(tensors, GgufTensors):
        metadata = tensors.home(names[0])[0].metadata
        return _File(kept_text_keys(metadata, recipe, text, mtp=mtp), out)
    said = _main_type(tensors, names) if recipe == KEEP else recipe
    return _File(text_keys(checkpoint, said, mtp=mtp), out)


def _main_type(tensors: Any, names: list[str]) -> str:
    """The type most elements of matrices are stored as."""
    counts: Counter[str] = Counter()
    for name in names:
        span = tensors.span(name)
        counts[stored_type(span)] += math.prod(span.shape) if len(span.shape) > 1 else 0
    return counts.most_common(1)[0][0]


def _source(checkpoint: Checkpoint, name: str) -> Source:
    config = checkpoint.config
    deepstack = config.vision.deepstack_visual_indexes if config.vision else ()
    source = source_of(name, config.text, deepstack=deepstack)
    if source is None:
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {shown(name)} has no name in GGUF files"
        )
    return source


def _as_stored(checkpoint: Checkpoint, name: str) -> Iterator[OutTensor]:
    """A tensor that is not quantized: of a GGUF file untouched, else its matrix in the stored type,
    its vector or convolution as F32.
    """
    tensors = checkpoint.tensors
    if isinstance(tensors, GgufTensors):
        model, source = tensors.home(name)
        for stored in source.stored:
            span = model.spans[stored]
            yield OutTensor(stored, span.type, span.shape, functools.partial(_raw, model, stored))
        return
    span, (stored,) = tensors.span(name), _source(checkpoint, name).stored
    shape = (span.shape[0], span.shape[2]) if name.endswith(CONV_SUFFIX) else span.shape
    plain = len(span.shape) == 2
    type = BY_NAME[_STORED[stored_type(span)]] if plain else BY_NAME["F32"]
    yield OutTensor(stored, type, shape, functools.partial(_plain, checkpoint, name, type))


# What makes a tensor's bytes lets go of its source behind it: of a mapped file only what is being
# written stays in memory.


def _raw(model: GgufModel, stored: str, share: Share) -> Iterator[NDArray[Any]]:
    yield model[stored]
    model.let_go(stored)


def _plain(
    checkpoint: Checkpoint, name: str, type: GgmlType, share: Share
) -> Iterator[NDArray[Any]]:
    yield _in_stored_order(checkpoint, name).astype(type.dtype, copy=False)
    checkpoint.tensors.let_go(name)


def _encoded(
    checkpoint: Checkpoint,
    name: str,
    type: str,
    how: Callable[..., Iterator[Blocks]],
    share: Share,
) -> Iterator[NDArray[Any]]:
    """The blocks of a matrix, in the bands that how(matrix, type, done=) makes."""
    matrix = _matrix(checkpoint, name)
    elements = math.prod(matrix.shape)
    try:
        for band in how(matrix, type, done=lambda n: share(n / elements)):
            checkpoint.tensors.let_go(name)
            yield band.data
    except ValueError as error:
        raise ModelFormatError(f"{checkpoint.path}: tensor {shown(name)}: {error}") from None


def _matrix(checkpoint: Checkpoint, name: str) -> NDArray[Any] | Blocks:
    """A matrix of the source as the file will have it."""
    tensors = checkpoint.tensors
    tiled = isinstance(tensors, GgufTensors)
    return tensors.stored(name) if tiled else _in_stored_order(checkpoint, name)


def _column_orders(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, NDArray[np.intp]]:
    """The orders that a folder's columns are put in, of the matrices where they are."""
    if isinstance(checkpoint.tensors, GgufTensors):
        return {}
    found = {name: _column_order(checkpoint, _source(checkpoint, name)) for name in names}
    return {name: order for name, order in found.items() if order is not None}


def _column_order(checkpoint: Checkpoint, source: Source) -> NDArray[np.intp] | None:
    if source.column_heads is None:
        return None
    width = checkpoint.config.text.linear_value_head_dim
    return expanded(np.argsort(source.column_heads), width)


def _in_stored_order(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """A tensor of a folder as GGUF files have it: the inverse of gguf_names.restored."""
    source, found = _source(checkpoint, name), checkpoint.tensors[name]
    if isinstance(found, Blocks):  # the folder is opened as it lies; nothing replaced its tensors
        raise TypeError(f"{name}: expected an array")
    if name.endswith(CONV_SUFFIX):
        found = found[:, 0, :]
    if source.transform == "minus_one":
        found = found.astype(np.float32) + np.float32(1)
    elif source.transform == "log_negative":
        found = (-np.exp(found.astype(np.float64))).astype(np.float32)
    if source.rows is not None:
        found = found[np.argsort(source.rows)]
    order = _column_order(checkpoint, source)
    return found if order is None else found[:, order]


# The vision tower


def _vision_file(checkpoint: Checkpoint, path: Path) -> _File | None:
    """The tower's file, beside `path`; None where it is there already, being the source's own."""
    vision, tensors = checkpoint.config.vision, checkpoint.tensors
    names = [name for name in tensors if name.startswith(VISUAL)]
    if vision is None:
        return None
    kind = _main_type(tensors, names)
    home = path.with_name(f"mmproj-{path.stem}-{_STORED.get(kind, kind.upper())}.gguf")
    out: list[OutTensor] = []
    if isinstance(tensors, GgufTensors):
        model = tensors.home(names[0])[0]
        if model.path.resolve().parent == path.resolve().parent:
            return None
        for name in names:
            out += _as_stored(checkpoint, name)
        return _File(kept_keys(model.metadata), out, home)
    for name in names:
        out += _visual(checkpoint, name)
    return _File(vision_keys(checkpoint, vision, kind), out, home)


def _visual(checkpoint: Checkpoint, name: str) -> Iterator[OutTensor]:
    """A tensor of a folder's tower; the patch convolution [D, C, 2, P, P] is one tensor a frame."""
    span, source = checkpoint.tensors.span(name), _source(checkpoint, name)
    shape = span.shape[:2] + span.shape[3:] if name == PATCH else span.shape
    stored = stored_type(span)
    # llama.cpp unfolds images for no bf16 convolution.
    exact = len(shape) == 1 or "pos_embed" in name or (name == PATCH and stored == "bfloat16")
    type = BY_NAME["F32" if exact else _STORED[stored]]
    for frame, target in enumerate(source.stored):
        make = functools.partial(_visual_data, checkpoint, name, frame, type)
        yield OutTensor(target, type, shape, make)


def _visual_data(
    checkpoint: Checkpoint, name: str, frame: int, type: GgmlType, share: Share
) -> Iterator[NDArray[Any]]:
    found = checkpoint.tensors[name]
    found = found[:, :, frame] if name == PATCH else found
    yield found.astype(type.dtype, copy=False)
    checkpoint.tensors.let_go(name)
