"""Names of tensors in checkpoints and in GGUF files, and how one is made of the other.

llama.cpp's converter changes more than names: norms carry their 1, A_log is stored as -exp(A_log),
the convolution lost an axis of 1, and value heads are in another order. A checkpoint has the R
value heads of a key head side by side (key head of h is h // R); a GGUF file has them R apart (key
head of t is t % Hk). It shows where Hv > Hk, in seven families of tensors: rows of in_proj_qkv (its
v part), in_proj_z, in_proj_b and in_proj_a, channels of conv1d (its v part), A_log and dt_bias, and
columns of out_proj. Rows move as they are, whatever their type; columns of a type with blocks of
256 do not, as a head is 128 wide, so they are told (`column_heads`) and not moved.

Only tables and permutations: reads no file. Source: llama.cpp's conversion/qwen.py (text, MTP),
conversion/qwen3vl.py (vision) and gguf-py/gguf/constants.py (names).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .config import TextConfig
from .errors import ModelFormatError, UnsupportedModelError
from .gguf_file import GgufSpan
from .json_file import shown

Transform = Literal["minus_one", "log_negative"]

_ROOT, _VISUAL = "model.language_model.", "model.visual."
_TOP = {
    "model.language_model.embed_tokens.weight": "token_embd.weight",
    "model.language_model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {  # of model.language_model.layers.i and mtp.layers.i
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
_MTP = {  # of the first block behind the layers
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}
_VISION_BLOCK = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}
_VISION_TOP = {
    "pos_embed": "v.position_embd",
    "patch_embed.proj": "v.patch_embd",
    "merger.norm": "v.post_ln",
    "merger.linear_fc1": "mm.0",
    "merger.linear_fc2": "mm.2",
}
_DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
PATCH = _VISUAL + "patch_embed.proj.weight"
CONV_SUFFIX = "linear_attn.conv1d.weight"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """How the tensor `name` of a checkpoint is made of stored ones.

    stored        names in the GGUF file: one, or for the patch convolution one per frame
    rows          released row i is stored row rows[i]; None: the same order
    column_heads  released columns of value head h are the stored columns of head column_heads[h],
                  each Dv wide; None: the same order
    transform     "minus_one": x - 1; "log_negative": log(-x); None: as it is
    """

    name: str
    stored: tuple[str, ...]
    rows: NDArray[np.intp] | None = None
    column_heads: NDArray[np.intp] | None = None
    transform: Transform | None = None

    @property
    def needs_numbers(self) -> bool:
        """Whether making it takes arithmetic or another shape: not for block types."""
        return self.transform is not None or len(self.stored) > 1 or self.name.endswith(CONV_SUFFIX)


# Orders of value heads


def released_head_order(key_heads: int, value_heads: int) -> NDArray[np.intp]:
    """intp [Hv]: released value head h is the stored head order[h].

    Stored head t belongs to key head t % Hk and is its (t // Hk)-th; released head h belongs to
    key head h // R and is its (h % R)-th, with R = Hv / Hk.
    """
    heads = np.arange(value_heads, dtype=np.intp)
    each = value_heads // key_heads
    return heads % each * key_heads + heads // each


def stored_head_order(key_heads: int, value_heads: int) -> NDArray[np.intp]:
    """intp [Hv]: stored value head t is the released head order[t]; the inverse of the other.

    An engine that keeps out_proj's columns as stored feeds it the heads in this order.
    """
    return np.argsort(released_head_order(key_heads, value_heads)).astype(np.intp)


def expanded(heads: NDArray[np.intp], width: int, begin: int = 0) -> NDArray[np.intp]:
    """An order of heads as an order of their `width` rows each, behind `begin` rows that stay;
    intp [begin + len(heads) * width].
    """
    moved = begin + (heads[:, None] * width + np.arange(width, dtype=np.intp)).reshape(-1)
    return np.concatenate([np.arange(begin, dtype=np.intp), moved])


# Names


def stored_names(name: str, layers: int, *, deepstack: Sequence[int] = ()) -> tuple[str, ...]:
    """What a tensor of a checkpoint is called in a GGUF file; empty for an unknown name.

    layers: num_hidden_layers, behind which the MTP layers are stored. deepstack: the config's
    deepstack_visual_indexes.
    """
    if name in _TOP:
        return (_TOP[name],)
    if name.startswith(_VISUAL):
        return _stored_visual(name.removeprefix(_VISUAL), deepstack)
    if name.startswith("mtp."):
        rest = name.removeprefix("mtp.")
        if rest in _MTP:
            return (f"blk.{layers}.{_MTP[rest]}",)
        first = layers
    elif name.startswith(_ROOT):
        rest, first = name.removeprefix(_ROOT), 0
    else:
        return ()
    parts = rest.split(".", 2)
    if len(parts) < 3 or parts[0] != "layers" or parts[2] not in _LAYER or not _number(parts[1]):
        return ()
    return (f"blk.{first + int(parts[1])}.{_LAYER[parts[2]]}",)


def _stored_visual(rest: str, deepstack: Sequence[int]) -> tuple[str, ...]:
    if rest == "patch_embed.proj.weight":
        return ("v.patch_embd.weight", "v.patch_embd.weight.1")
    stem, _, kind = rest.rpartition(".")
    if kind not in ("weight", "bias"):
        return ()
    if stem in _VISION_TOP:
        return (f"{_VISION_TOP[stem]}.{kind}",)
    head, _, tail = stem.partition(".")
    number, _, part = tail.partition(".")
    if not _number(number):
        return ()
    if head == "blocks" and part in _VISION_BLOCK:
        return (f"v.blk.{number}.{_VISION_BLOCK[part]}.{kind}",)
    if head == "deepstack_merger_list" and part in _DEEPSTACK and int(number) < len(deepstack):
        return (f"v.deepstack.{deepstack[int(number)]}.{_DEEPSTACK[part]}.{kind}",)
    return ()


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4


def released_name(stored: str, layers: int, *, deepstack: Sequence[int] = ()) -> str | None:
    """What a tensor of a GGUF file is called in a checkpoint; None for an unknown name. Both
    halves of the patch convolution are one tensor there.
    """
    if stored in _TOP_BACK:
        return _TOP_BACK[stored]
    if stored.startswith("v.patch_embd.weight"):
        return PATCH if stored.removeprefix("v.patch_embd.weight") in ("", ".1") else None
    if stored.startswith("blk."):
        _, number, rest = (*stored.split(".", 2), "", "")[:3]
        if not _number(number):
            return None
        index = int(number)
        if rest in _MTP_BACK:
            return f"mtp.{_MTP_BACK[rest]}" if index == layers else None
        if rest not in _LAYER_BACK:
            return None
        home = _ROOT if index < layers else "mtp."
        return f"{home}layers.{index if index < layers else index - layers}.{_LAYER_BACK[rest]}"
    stem, _, kind = stored.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _VISION_TOP_BACK:
        return f"{_VISUAL}{_VISION_TOP_BACK[stem]}.{kind}"
    v, head, number, part = (*stem.split(".", 3), "", "", "", "")[:4]
    if v == "v" and head == "blk" and _number(number) and part in _VISION_BLOCK_BACK:
        return f"{_VISUAL}blocks.{int(number)}.{_VISION_BLOCK_BACK[part]}.{kind}"
    if v == "v" and head == "deepstack" and _number(number) and part in _DEEPSTACK_BACK:
        if int(number) in deepstack:
            which = list(deepstack).index(int(number))
            return f"{_VISUAL}deepstack_merger_list.{which}.{_DEEPSTACK_BACK[part]}.{kind}"
    return None


def _turned(table: Mapping[str, str]) -> dict[str, str]:
    return {stored: released for released, stored in table.items()}


_TOP_BACK, _LAYER_BACK, _MTP_BACK = _turned(_TOP), _turned(_LAYER), _turned(_MTP)
_VISION_BLOCK_BACK, _VISION_TOP_BACK = _turned(_VISION_BLOCK), _turned(_VISION_TOP)
_DEEPSTACK_BACK = _turned(_DEEPSTACK)


# What is done to each


def source_of(name: str, text: TextConfig, *, deepstack: Sequence[int] = ()) -> Source | None:
    """How the tensor `name` of a checkpoint is made of stored ones; None for an unknown name."""
    stored = stored_names(name, text.num_hidden_layers, deepstack=deepstack)
    if not stored:
        return None
    if name.startswith(_VISUAL):
        return Source(name, stored)
    rest = name.rpartition("linear_attn.")[2] if "linear_attn." in name else None
    if rest is None:
        norm = stored[0].endswith("norm.weight")  # enorm, hnorm, attn_q_norm, ...: all but ssm_norm
        return Source(name, stored, transform="minus_one" if norm else None)
    rows = columns = None
    key_heads, value_heads = text.linear_num_key_heads, text.linear_num_value_heads
    if key_heads != value_heads:
        heads = released_head_order(key_heads, value_heads)
        begin = 2 * key_heads * text.linear_key_head_dim
        if rest in ("in_proj_qkv.weight", "conv1d.weight"):
            rows = expanded(heads, text.linear_value_head_dim, begin)
        elif rest == "in_proj_z.weight":
            rows = expanded(heads, text.linear_value_head_dim)
        elif rest in ("in_proj_b.weight", "in_proj_a.weight", "A_log", "dt_bias"):
            rows = heads
        elif rest == "out_proj.weight":
            columns = heads
    transform: Transform | None = "log_negative" if rest == "A_log" else None
    return Source(name, stored, rows, columns, transform)


def released_shape(source: Source, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape the released tensor has when the stored ones have `shapes`."""
    first = shapes[0]
    if source.name == PATCH:  # [D, C, P, P] a frame -> [D, C, T, P, P]
        return (*first[:2], len(shapes), *first[2:])
    if source.name.endswith(CONV_SUFFIX):  # [C, K] -> [C, 1, K]
        return (*first[:-1], 1, first[-1])
    return first


def restored(source: Source, arrays: Sequence[NDArray[Any]], *, head_dim: int) -> NDArray[Any]:
    """The released tensor from the stored arrays of a plain type, or with its rows moved from
    uint8 rows of blocks.

    head_dim: Dv, the width of a head among out_proj's columns. Transformed tensors come as
    float32. Raises UnsupportedModelError where a block type would have to be computed with or cut
    through, ModelFormatError for a stored -exp(A_log) above 0.
    """
    first = arrays[0]
    blocks = first.dtype == np.uint8
    if blocks and (source.needs_numbers or source.column_heads is not None):
        raise UnsupportedModelError(
            f"{source.stored[0]}: stored in blocks: expected F32, F16 or BF16 to restore "
            f"{source.name}"
        )
    if source.name == PATCH:
        return np.stack(list(arrays), axis=2)
    found = first if source.rows is None else first[source.rows]
    if source.column_heads is not None:
        found = found[:, expanded(source.column_heads, head_dim)]
    if source.transform == "minus_one":
        found = found.astype(np.float32) - np.float32(1)
    elif source.transform == "log_negative":
        found = found.astype(np.float64)
        if (found > 0).any():
            raise ModelFormatError(
                f"{source.stored[0]}: holds {found.max()}: expected -exp(A_log), never above 0"
            )
        with np.errstate(divide="ignore"):  # -0 is A_log = -inf, as stored
            found = np.log(-found).astype(np.float32)
    if source.name.endswith(CONV_SUFFIX):
        found = found[:, None, :]
    return found


def bind(
    expected: Iterable[tuple[str, tuple[int, ...]]],
    spans: Mapping[str, GgufSpan],
    text: TextConfig,
    *,
    deepstack: Sequence[int] = (),
    where: str,
) -> dict[str, Source]:
    """The source of every expected tensor (released name and shape), in that order.

    `spans` are all tensors of the text file or of the vision file; those of an MTP layer may be
    left over where none is expected. Raises ModelFormatError listing what is missing, left over or
    of another shape, UnsupportedModelError for a block type where numbers are needed.
    """
    expected = list(expected)
    found: dict[str, Source] = {}
    missing, wrong, blocks, unnamed = [], [], [], []
    for name, shape in expected:
        source = source_of(name, text, deepstack=deepstack)
        if source is None:
            unnamed.append(name)
            continue
        gone = [stored for stored in source.stored if stored not in spans]
        if gone:
            missing += gone
            continue
        found[name] = source
        own = [spans[stored] for stored in source.stored]
        have = released_shape(source, [span.shape for span in own])
        if have != tuple(shape) or any(span.shape != own[0].shape for span in own):
            stored_as = " and ".join(f"{shown(span.name)} {list(span.shape)}" for span in own)
            wrong.append(f"{stored_as}, expected what makes {list(shape)}")
        if source.needs_numbers and not all(span.type.is_float for span in own):
            blocks.append(f"{shown(own[0].name)} is {own[0].type}")
    used = {stored for source in found.values() for stored in source.stored}
    extra = sorted(set(spans) - used)
    if not any(name.startswith("mtp.") for name, _ in expected):
        extra = [stored for stored in extra if not _is_mtp(stored, text.num_hidden_layers)]
    faults = [
        _first_five("without a name in GGUF", unnamed),
        _first_five("missing", map(shown, missing)),
        _first_five("unexpected", map(shown, extra)),
        _first_five("of the wrong shape", wrong),
    ]
    if any(faults):
        raise ModelFormatError(
            f"{where}: tensors do not match the metadata: {'; '.join(filter(None, faults))}"
        )
    if blocks:
        raise UnsupportedModelError(
            f"{where}: {_first_five('in a type for matrices', blocks)}; expected F32, F16 or BF16"
        )
    return found


def _is_mtp(stored: str, layers: int) -> bool:
    """Whether a stored tensor belongs to a block behind the layers."""
    root, number, _ = (*stored.split(".", 2), "", "")[:3]
    return root == "blk" and _number(number) and int(number) >= layers


def _first_five(kind: str, items: Iterable[str]) -> str:
    listed = list(items)
    if not listed:
        return ""
    return f"{len(listed)} {kind}: {', '.join(listed[:5])}{', ...' if len(listed) > 5 else ''}"
