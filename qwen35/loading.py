"""load(): from "tiny", a folder, a GGUF file or a hub id to a Model.

Arguments are checked before anything is opened, the checkpoint before anything is copied. Weights
stay in the mapped files as stored; only quantize= and dtype="bfloat16" copy, and only matrices that
are stored in another type.
"""

import functools
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, PackedBlocks
from .checkpoint import Checkpoint, open_checkpoint
from .config import Config
from .dtypes import DTYPES, KV_DTYPES, SHORT_KV_DTYPES
from .errors import ModelFormatError
from .fields import nearest
from .load_progress import LoadProgress, Report, reporting
from .machine import (
    default_threads,
    release_free_memory,
    thread_reason,
)
from .mapped_file import is_mapped
from .memory_plan import core_geometry, default_context, make_plan, settle
from .prepare_weights import quantize_weights, read_ahead, to_bfloat16
from .quantize import check_recipe

if TYPE_CHECKING:
    from .media import MediaLimits
    from .model import Model
    from .tokenizer import Tokenizer

__all__ = ["Checkpoint", "default_threads", "load", "open_checkpoint", "thread_reason"]

MAX_CONTEXT = 2**31 - 1
MAX_THREADS = 1024
BF16 = np.dtype(ml_dtypes.bfloat16)


def load(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    kv_dtype: str = "auto",
    rope_scaling: Mapping[str, Any] | None = None,
    mtp: bool | str = "auto",
    vision: bool = True,
    mmproj: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: LoadProgress = None,
    check: bool = False,
    screen: bool | str = "auto",
    media_limits: "MediaLimits | None" = None,
    **unknown: Any,
) -> "Model":
    """Load a model: "tiny" (it is inside the package), a folder, a GGUF file (any part of a split
    one), or a hub id such as "Qwen/Qwen3.5-0.8B".

    revision: branch, tag or commit of a hub id. local_files_only: use the hub's cache alone.
    dtype: "auto" as stored; "float32" the exact reference mode (bf16 and f16 weights are exact in
        it and stay as they are, and tokens meet the numbers that blocks stand for); in all others
        matrices of blocks are laid out anew in memory and multiplied as integers by tokens in 8
        bits, 16 where it shows (KL below 1e-4 nats), and those of bf16 and f16 in 16-bit fixed
        point where the processor does so faster (KL below 1e-6), of the vision tower too, with its
        attention (features within 6e-4 of the largest). "bfloat16" converts weights stored
        otherwise, rounding to nearest even.
    quantize: "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", ...: matrices that are larger become such
        blocks in memory (`quantize.RECIPES`). A GGUF file so made loads faster.
    context: tokens a session holds, refused where weights and K/V do not fit memory; default the
        trained length, at most 262,144 (more only with YaRN) and what the machine can hold
        (`memory_plan.settle`). K/V is allocated as it is needed.
    threads: default `default_threads()`. kv_dtype: "auto" is float32 with dtype="float32", else
        "int16" where the processor multiplies pairs of int16 faster than floats (x86), "float16"
        where it does not. "int16" is fixed point, as close as float16 and 1.6 % larger (a factor
        for each vector). "q8_0" halves the K/V cache (8-bit blocks of 32, head_dim a multiple of
        it). "f32", "f16" and "bf16" are short for the long names.
    rope_scaling: replaces that of the file, e.g. {"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 262144}.
    mtp: draft layer; True insists that its weights are there. No drafts are made yet.
    vision: False leaves the vision tower out; images and videos are then refused. mmproj: the
        vision file of a GGUF file; default the finest *mmproj*.gguf beside it.
    media_limits: what a request may hold, `qwen35.MediaLimits(image_pixels=..., frames=...)`.
    progress: None draws a bar on a terminal or in a notebook, False none; or a function of
        (done_bytes, total_bytes, stage).
    check: read every weight and refuse NaN and infinity.
    screen: whether greedy draws and those of top_k up to 64 look for their candidates in a copy of
        the head in six bits first, and read of the head itself what these leave. What is drawn
        stays the same, to the bit. The copy takes 0.83 bytes a weight of the head, of the released
        bf16 models 2 to 14 % more memory, and grows with the first 16 tokens. "auto" makes one for
        heads of 16 million weights or more where memory allows and the processor multiplies such
        codes fast; heads in blocks never get one, which would read little less (`csrc/screen.h`).

    Raises FileNotFoundError, OSError (hub), ModelFormatError (a broken or contradictory file),
    UnsupportedModelError (another kind of model), MemoryError (with numbers, before anything is
    copied), ValueError or TypeError for an argument.
    """
    _refuse_unknown(unknown)
    _check_words("dtype", dtype, DTYPES)
    _check_words("kv_dtype", kv_dtype, (*KV_DTYPES, *SHORT_KV_DTYPES))
    kv_dtype = SHORT_KV_DTYPES.get(kv_dtype, kv_dtype)
    _check_flags(vision=vision, local_files_only=local_files_only, check=check)
    _check_switches(mtp=mtp, screen=screen)
    _check_count("context", context, MAX_CONTEXT)
    _check_count("threads", threads, MAX_THREADS)
    _check_limits(media_limits)
    recipe = None if quantize is None else check_recipe(quantize)
    threads = default_threads() if threads is None else int(threads)
    kv_dtype = settle_kv_dtype(kv_dtype, dtype)
    checkpoint = open_checkpoint(
        source,
        revision=revision,
        mmproj=mmproj,
        vision=vision,
        local_files_only=local_files_only,
        progress=progress,
    )
    try:
        if rope_scaling is not None:
            checkpoint.config = checkpoint.config.with_rope_scaling(rope_scaling)
        _check_mtp(checkpoint, mtp)
        plan = make_plan(
            checkpoint,
            context=_context(checkpoint.config, context),
            threads=threads,
            kv_dtype=kv_dtype,
            dtype=dtype,
            recipe=recipe,
            vision=vision,
            screen=screen,
        )
        plan = settle(plan, str(checkpoint.path), asked=context is not None, kv_dtype=kv_dtype)
        with reporting(progress) as report:
            read_ahead(checkpoint.tensors, report)
            if recipe is not None:
                quantize_weights(checkpoint, recipe, threads, report)
            if dtype == "bfloat16":
                to_bfloat16(checkpoint.tensors, report)
            if check:
                checkpoint.check_finite()
            return _model(
                checkpoint,
                dtype=dtype,
                context=plan.context,
                threads=threads,
                kv_dtype=kv_dtype,
                vision=vision,
                screen=plan.screen > 0,
                media_limits=media_limits,
                bars=progress if isinstance(progress, bool) else None,
                report=report,
            )
    except BaseException:
        checkpoint.close()
        raise


# Arguments


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    known = [name for name in load.__annotations__ if name not in ("unknown", "return")]
    for name in unknown:
        raise TypeError(f"load() got an unexpected keyword argument {name!r}{nearest(name, known)}")


def _check_words(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, words))}")


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: expected True or False")


def _check_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool) and value != "auto":
            raise ValueError(f"{name}={value!r}: expected 'auto', True or False")


def _check_count(name: str, value: Any, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: expected an integer or None")
    if not 1 <= value <= high:
        raise ValueError(f"{name}={value}: expected 1 to {high}")


def _check_limits(limits: Any) -> None:
    if limits is None:
        return
    from .media import MediaLimits

    if not isinstance(limits, MediaLimits):
        raise TypeError(f"media_limits: expected a qwen35.MediaLimits, got {type(limits).__name__}")


def settle_kv_dtype(kv_dtype: str, dtype: str = "auto") -> str:
    """The type that K and V are kept in, "auto" being what this processor attends to fastest."""
    if kv_dtype != "auto":
        return kv_dtype
    from . import _core

    return "float32" if dtype == "float32" else str(_core.cpu()["kv_dtype"])


def _context(config: Config, context: int | None) -> int:
    """Tokens a session holds; a warning beyond the length the positions were made for."""
    limit = config.context_limit
    if context is None:
        return default_context(config)
    if context > limit:
        warnings.warn(
            f"context={context} is beyond the {limit} tokens the model was made for; answers get "
            "worse there "
            '(rope_scaling={"rope_type": "yarn", "factor": ...} stretches it)',
            stacklevel=3,
        )
    return int(context)


def _check_mtp(checkpoint: Checkpoint, mtp: bool | str) -> None:
    """MTP declared but absent: a warning, an error when it was insisted on."""
    if mtp is False or checkpoint.has_mtp:
        return
    declared = checkpoint.config.text.mtp_num_hidden_layers
    found = (
        f"{checkpoint.path}: config.json declares {declared} MTP layers and the files hold no "
        "mtp.* tensors"
    )
    if mtp is True:
        raise ModelFormatError(f"{found}; take a checkpoint that has them, or leave mtp=True out")
    if declared:
        warnings.warn(f"{found}; loading without them", stacklevel=3)


# The model


def _model(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    context: int,
    threads: int,
    kv_dtype: str,
    vision: bool,
    screen: bool,
    media_limits: "MediaLimits | None",
    bars: bool | None,
    report: Report,
) -> "Model":
    from . import _core
    from .model import Model

    geometry = core_geometry(checkpoint, dtype=dtype, vision=vision)
    names = [name for name, _ in _core.expected_tensors(geometry)]
    tensors = {name: as_core(checkpoint.tensors.stored(name)) for name in names}
    core = _core.Model(
        geometry,
        tensors,
        threads=threads,
        kv_dtype=kv_dtype,
        screen=screen,
        progress=lambda done, total: report(done, total, "pack"),
    )
    del tensors
    for name in core.laid_out:  # made in memory, and now twice there
        given: Any = checkpoint.tensors.span(name)
        read: Any = functools.partial(core.read, name)
        empty = np.empty((0, 0), np.uint8)
        checkpoint.tensors.replace(name, PackedBlocks(given.dtype, empty, given, read))
    tokenizer: Any = tokenizer_of(checkpoint)
    return Model(
        checkpoint,
        core,
        tokenizer,
        context=context,
        dtype=dtype,
        kv_dtype=kv_dtype,
        progress=bars,
        media_limits=media_limits,
    )


def tokenizer_of(checkpoint: Checkpoint) -> "Tokenizer | AbsentTokenizer":
    """The checkpoint's tokenizer; a stand-in that refuses text where it has none."""
    from .tokenizer import Tokenizer

    config, rows = checkpoint.config, checkpoint.config.text.vocab_size
    if checkpoint.vocabulary is None and not os.path.lexists(checkpoint.tokenizer_file):
        return AbsentTokenizer(checkpoint.tokenizer_file, rows)
    expected = {}
    if config.vision is not None:
        expected = {
            "<|vision_start|>": config.vision_start_token_id,
            "<|vision_end|>": config.vision_end_token_id,
            "<|image_pad|>": config.image_token_id,
            "<|video_pad|>": config.video_token_id,
        }
    checks: dict[str, Any] = {"embedding_rows": rows, "expected_ids": expected}
    if checkpoint.vocabulary is not None:
        from .gguf_tokenizer import build_tokenizer

        encoder = build_tokenizer(checkpoint.vocabulary)
        tokenizer = Tokenizer.from_encoder(encoder, where=str(checkpoint.path), **checks)
        checkpoint.vocabulary = None  # built: its lists may go
    else:
        tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, **checks)
    release_free_memory()
    return tokenizer


class AbsentTokenizer:
    """Stands where a folder has no tokenizer.json: token ids work, text is FileNotFoundError."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self.vocab_size = self.rows = rows

    def token_id(self, text: str) -> None:
        """No text is a token."""
        return None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Refused."""
        self._refuse()

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Refused."""
        self._refuse()

    def token_bytes(self, id: int) -> bytes:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise FileNotFoundError(
            f"{self._path}: no such file, so only token ids work (logits, score, sessions); put "
            "the checkpoint's tokenizer.json there"
        )


def as_core(array: "NDArray[Any] | Blocks") -> Any:
    """The core takes bfloat16 as its bits, and blocks as (type, bytes, whether a file is mapped
    there).
    """
    if isinstance(array, Blocks):
        return array.type, array.data, is_mapped(array.data)
    return array.view(np.uint16) if array.dtype == BF16 else array
