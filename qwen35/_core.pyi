"""The native module. Mechanism only: checked arrays and numbers go in; it knows no files, prompts
or templates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Isa = Literal["c", "avx2", "avx2vnni", "avx512", "avx512vnni", "neon", "neondotprod"]
KvDtype = Literal["int16", "float32", "float16", "bfloat16", "q8_0"]

class Geometry(TypedDict):
    """Everything the core needs of a config.json, already validated (`config.py` makes it)."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    layer_types: list[str]  # "linear_attention" | "full_attention", one a layer
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    mrope_section: tuple[int, int, int]  # sums to len(inv_freq)
    inv_freq: NDArray[np.float32]  # [Dr / 2], rope scaling (YaRN) already applied
    rope_attention_scaling: float  # multiplies cos and sin; 1.0 without YaRN
    tiled_value_heads: bool  # value head h uses key head h % Hk, as in GGUF files
    integer_products: bool  # blocks, bf16 and f16 meet tokens in 8 or 16 bits, not in float32
    vision: VisionGeometry | None  # None: text only

class VisionGeometry(TypedDict):
    """The vision tower's part, already validated."""

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    position_side: int  # of the square position table
    inv_freq: NDArray[np.float32]  # [head dim / 4]
    deepstack_visual_indexes: Sequence[int]
    image_token_id: int
    video_token_id: int
    exact: bool  # False: factors of products may be rounded to 16 bits

def expected_tensors(geometry: Geometry) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor a checkpoint of this geometry holds."""

def plan_memory(
    geometry: Geometry, *, threads: int = 1, kv_dtype: KvDtype = "float16"
) -> dict[str, int]:
    """What `Model.memory` of such a model says, but for its weights: owned, kv_per_token, state,
    scratch, and screen, if there is one.
    """

def cpu() -> dict[str, Any]:
    """{"isa": in use, "kv_dtype": the fastest with it, "available": (...), "features": (...),
    "blas": str}.
    """

class Model:
    """Weights bound to names. Immutable; shared by threads and sessions."""

    def __init__(
        self,
        geometry: Geometry,
        # float32, float16, or bfloat16 seen as uint16; C-contiguous. Matrices also in blocks, as
        # (type, [rows, bytes of a row], whether that is a mapped file)
        tensors: Mapping[str, NDArray[Any] | tuple[str, NDArray[np.uint8], bool]],
        *,
        threads: int = 1,
        kv_dtype: KvDtype = "float16",
        # whether draws that need few logits look for them in a smaller copy of the head first,
        # which the first of them make; not of a head in blocks
        screen: bool = False,
        progress: Callable[[int, int], object] | None = None,  # bytes laid out, bytes in all
    ) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def screened(self) -> tuple[int, int]:
        """Draws that the copy of the head decided, and that it left to the head."""
    @property
    def laid_out(self) -> list[str]:
        """Names of the matrices whose blocks the core has a copy of and let go of."""

    def read(self, name: str) -> NDArray[np.float32] | None:
        """The numbers of one of those; None for any other."""

    def memory(self) -> dict[str, int]:
        """Bytes: weights (as given), owned (f32 copies of small vectors), kv_per_token, state (of
        one session), scratch, screen (the copy of the head once it is whole; 0: none).
        """
    def session(self, context: int) -> Session: ...
    def batch(self, size: int) -> Batch:
        """Steps of up to `size` streams at once, 1 to 64; holds logits [size, V]."""
    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """(1 + DeepStack layers, D) of the features of one image token; None without a tower."""
    def encode_vision(
        self,
        pixels: NDArray[np.float32],  # [sum of t h w, channels * frames * patch * patch]
        grid_thw: Sequence[int] | Sequence[Sequence[int]] | NDArray[Any],  # [3] or [m, 3]
        *,
        poll: Callable[[], object] | None = None,  # every 20 ms; what it raises ends the work
    ) -> NDArray[np.float32]:
        """Features of the tokens, [n, *feature_shape]: for the embedding, then for each of the
        first layers. Memory beside the result is that of one frame.
        """

class Snapshot:
    """A point in a session's timeline. Cheap: recurrent state copied, K/V pages shared."""

    @property
    def position(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Session:
    """One timeline, one user at a time (BusyError otherwise). Made by Model.session()."""

    @property
    def position(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def ids(self) -> NDArray[np.int32]:
        """A copy of the tokens in the timeline, [position]."""
    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits after the last token, [V]; None before the first. Computed by the first who asks
        and kept until the timeline changes.
        """
    @property
    def has_logits(self) -> bool:
        """Whether `logits` is not None; computes nothing."""
    @property
    def nbytes(self) -> int: ...
    def prefill(
        self,
        ids: NDArray[np.int32],
        *,
        position_ids: NDArray[np.int32] | None = None,  # [3, T]; None: continue
        features: NDArray[np.float32] | None = None,  # of the image and video tokens among ids
        progress: Callable[[int, int], object] | None = None,  # tokens done, tokens in all
    ) -> None:
        """Append ids. KeyboardInterrupt (or what `progress` raises) leaves the session where the
        last whole chunk ended; `position` tells.
        """
    def observe(
        self, ids: NDArray[np.int32], callback: Callable[[str, NDArray[np.float32]], object]
    ) -> None:
        """Append ids; callback(name, x) sees the input x [T, cols] of the product with every matrix
        on the way, before it is made: read-only, and valid during the call alone. What it raises
        ends the computation and leaves the session where the last whole chunk ended.
        """
    def logits_all(
        self,
        ids: NDArray[np.int32],
        *,
        position_ids: NDArray[np.int32] | None = None,
        features: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Append ids and return the logits after each, [T, V]."""
    def score(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Append ids (at least one token must be there before); log-probability of each under what
        precedes it [T], and the most likely token at each place [T]. No [T, V] matrix is made.
        """
    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...
    def fork(self) -> Session: ...
    def dump(self) -> dict[str, NDArray[Any]]:
        """The whole timeline as arrays, to write to a file: one, "timeline", uint8."""
    def undump(self, arrays: Mapping[str, NDArray[Any]]) -> None: ...
    def generate(
        self,
        ids: NDArray[np.int32],  # appended first; may be empty where logits are there
        *,
        pixels: NDArray[np.float32] | None = None,  # encoded at once, with grid_thw; or
        grid_thw: NDArray[Any] | None = None,
        features: NDArray[np.float32] | None = None,  # what encode_vision gave for them
        position_ids: NDArray[np.int32] | None = None,  # needed with pixels
        max_tokens: int = -1,  # -1: until the context is full
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        stop_token_ids: Iterable[int] = (),
        logprobs: int = -1,  # -1: none; 0: of the chosen token; n: and of the n most likely
        progress: Callable[[int, int], object] | None = None,
    ) -> NativeStream: ...

class NativeStream(Iterator[tuple[int, float | None, list[tuple[int, float]]]]):
    """Tokens as they are decoded: (id, logprob, [(id, logprob), ...]).

    The prompt is prefilled by the first next(). A stop token is yielded last; then finish_reason is
    "stop". The last token yielded is not yet in the session.
    """

    def cancel(self) -> None:
        """From any thread: end at the next poll (within a layer), finish_reason "cancelled"."""
    def force(self, ids: Sequence[int]) -> None:
        """These tokens come next instead of sampled ones."""
    @property
    def finish_reason(self) -> Literal["stop", "length", "cancelled"] | None: ...
    @property
    def timings(self) -> dict[str, float]:
        """prompt_tokens, prefill_s, decode_tokens, decode_s."""

class Batch:
    """Streams that go forward together. Made by Model.batch(). Which streams share a step is free
    at every step; a stream may also be read alone in between.
    """

    @property
    def size(self) -> int: ...
    def step(
        self, streams: Sequence[NativeStream]
    ) -> list[tuple[int, float | None, list[tuple[int, float]]] | None]:
        """One forward call of 256 tokens at most: every stream reads its last token or a share of
        its prompt, and says the next token if that was all. An entry is what next() would give, or
        None: its prompt is not read yet, or its finish_reason is set. Bits are those of the stream
        alone. A stream that is cancelled leaves at the next step. Interrupted, or when all of them
        are cancelled: at the next poll, and then sessions that were reading are empty.
        """

def sample(
    logits: NDArray[np.float32],
    *,
    coin: float,
    history: NDArray[np.int32],
    n_prompt: int,
    **fields: Any,
) -> int:
    """One draw with the sampler's own code, for tests: `coin` in [0, 1) is the random number."""

def formats() -> dict[str, tuple[int, int, int, bool]]:
    """Storage types of GGUF files by name ("q4_k"): (number in the file, elements of a block, bytes
    of a block, whether encode_blocks makes it).
    """

def decode_blocks(name: str, data: Any, n: int) -> NDArray[np.float32]:
    """The n numbers, [n], that a contiguous buffer of exactly their bytes holds."""

def encode_blocks(
    name: str,
    x: NDArray[np.float32],  # [rows, n], C-contiguous, finite
    importance: NDArray[np.float32] | None = None,  # [n], 0 or above; None: all alike
) -> NDArray[np.uint8]:
    """Blocks [rows, bytes of a row] that come close to x: the sum of importance[i] (x[r, i] -
    decoded[r, i])^2 is made small.
    """

def fitted_bytes() -> int:
    """Bytes of a fitted block: scales and levels apart, whatever its type."""

def feed_window(
    name: str,
    fitted: NDArray[np.uint8],  # [rows, blocks * fitted_bytes()], filled
    error: NDArray[np.float32],  # [rows, n] x - y, filled
    x: NDArray[np.float32],  # [rows, n], n <= 256: whole blocks
    fed: NDArray[np.float32],  # [rows, n] x and what errors of other windows add to it
    importance: NDArray[np.float32],  # [1, n]
    u: NDArray[np.float32],  # [n, n]: error of column i -> target of column k > i
) -> None:
    """Fit blocks to a window of columns, each column after the errors before it."""

def polish_window(
    name: str,
    fitted: NDArray[np.uint8],  # [rows, blocks * fitted_bytes()], changed
    error: NDArray[np.float32],  # [rows, n], changed
    gradient: NDArray[np.float32],  # [rows, n] H error, of all windows; changed
    h: NDArray[np.float32],  # [n, n] the window's part of H
    sweeps: int,
) -> None:
    """Move codes and scales to where error^T H error is least, one after the other."""

def pack_fitted(name: str, fitted: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Fitted blocks of rows of n columns as their bytes, [rows, bytes of a row]."""

def kernels() -> tuple[str, ...]:
    """Targets this machine can run, best last, for tests."""

def run_kernel(target: str, name: str, *args: Any) -> None:
    """Call one kernel of one target on arrays, for tests (py/testing.c has the argument lists)."""

def run_screen(
    target: str,
    head: NDArray[Any],  # [V, D] float32, float16, or bfloat16 seen as uint16
    h: NDArray[np.float32],  # [D]
    *,
    k: int = 1,
    margin: float = 0.0,
    always: Sequence[int] | NDArray[np.int32] = (),
) -> dict[str, NDArray[Any]]:
    """What a screen of a head makes of a hidden state on one target, for tests: approx, reach [V],
    rows [n] and chosen [n], their logits; and logits [V], the head's own.
    """

def run_product(
    target: str,
    type: str,
    blocks: NDArray[np.uint8],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    packed: bool = True,
    fine: bool = False,
    add: bool = False,
    threads: int = 1,
    repeat: int = 1,
) -> list[float]:
    """y [T, rows] (+)= x [T, columns] W^T on one target, for tests and benchmarks: W in blocks as
    integers, "f32", "f16" and "bf16" in float32. Returns the seconds of each of `repeat` products,
    the layout of W not among them.
    """
