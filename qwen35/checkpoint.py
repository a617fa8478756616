"""A checkpoint, opened and checked: "tiny", a folder, a GGUF file, or a hub id -> Checkpoint.

Nothing in a folder is ever executed. Tensors are compared with the one table the core has for them
before any is used.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import Config, TextConfig, read_config
from .errors import ModelFormatError
from .json_file import read_json, read_text, shown
from .load_progress import LoadProgress, check_progress
from .weight_files import Tensors, open_weights

if TYPE_CHECKING:
    from .gguf_checkpoint import GgufTensors
    from .gguf_tokenizer import Vocabulary

MAX_TEMPLATE_BYTES = 1 << 20
PIECE = 1 << 24  # elements handled between two looks at Ctrl-C
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """A checked checkpoint: what its files say, and its tensors as read-only views of them."""

    path: Path
    name: str
    config: Config
    tensors: "Tensors | GgufTensors"  # released names, file order
    generation_config: dict[str, Any]
    chat_template: str | None
    tokenizer_file: Path  # may be absent: ids work without it
    vocabulary: "Vocabulary | None" = None  # of a GGUF file, instead of tokenizer_file
    preprocessor: dict[str, Any] | None = None  # of images; None: the family's values
    video_preprocessor: dict[str, Any] | None = None
    revision: str | None = None  # commit, for a model from the hub

    @property
    def has_mtp(self) -> bool:
        """Whether the MTP layer's weights are there."""
        return any(name.startswith("mtp.") for name in self.tensors)

    @property
    def has_vision(self) -> bool:
        """Whether the vision tower's weights are there."""
        return any(name.startswith("model.visual.") for name in self.tensors)

    def check_unchanged(self) -> None:
        """ModelFormatError when a mapped file changed its size since it was opened. Costs one fstat
        a file.
        """
        for file in self.tensors.files:
            file.check_unchanged()

    def check_finite(self) -> None:
        """ModelFormatError naming the first tensor with a NaN or infinity. Reads every weight."""
        for name, array in self.tensors.items():
            for piece in pieces(array):
                if not np.isfinite(piece).all():
                    raise ModelFormatError(
                        f"{self.path}: tensor {shown(name)} holds NaN or infinity"
                    )

    def fingerprint(self) -> str:
        """What a saved session must match: SHA-256 of all shapes and of the vectors."""
        digest = hashlib.sha256()
        for name in self.tensors:
            span = self.tensors.span(name)
            digest.update(f"{name} {span.dtype} {span.shape}\n".encode())
            if len(span.shape) == 1:
                digest.update(self.tensors[name].tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the files. Arrays that are still held stay valid."""
        self.tensors.close()


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    mmproj: str | os.PathLike[str] | None = None,
    vision: bool = True,
    local_files_only: bool = False,
    progress: LoadProgress = None,
) -> Checkpoint:
    """Find and check a checkpoint without making a model of it; errors as of `loading.load`.

    vision=False: do not look for the vision file beside a GGUF file.
    """
    check_progress(progress)
    if not isinstance(source, str | os.PathLike) or isinstance(source, bytes):
        raise TypeError(f"source: expected a str or a path, got {type(source).__name__}")
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"revision: expected a str or None, got {type(revision).__name__}")
    if mmproj is not None and not isinstance(mmproj, str | os.PathLike):
        raise TypeError(f"mmproj: expected a str, a path or None, got {type(mmproj).__name__}")
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        from .gguf_checkpoint import open_gguf_checkpoint

        seen = None if mmproj is None else Path(mmproj).expanduser()
        return open_gguf_checkpoint(path, seen, vision=vision)
    if mmproj is not None:
        raise ValueError(
            f"mmproj={str(mmproj)!r}: belongs to a GGUF file, and {str(source)!r} is none; a "
            "folder holds its own vision tower"
        )
    if source == "tiny":
        return _open_folder(_embedded(), "tiny")
    if path.is_dir():
        return _open_folder(path, path.resolve().name)
    if path.exists():
        raise ValueError(
            f"{path}: expected a .gguf file or the folder that holds config.json, not a file in it"
        )
    return _open_hub(source, path, revision, local_files_only, progress)


def _embedded() -> Path:
    from importlib.resources import files

    folder = Path(str(files(__package__) / "tiny"))
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: the embedded model is missing; reinstall qwen35")
    return folder


def _open_hub(
    source: Any, path: Path, revision: str | None, local_files_only: bool, progress: LoadProgress
) -> Checkpoint:
    from .hub import HUB_ID, download

    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"{path}: no such folder; expected 'tiny', a folder with config.json and safetensors, "
            "or a hub id such as 'Qwen/Qwen3.5-0.8B'"
        )
    folder = download(
        source, revision=revision, local_files_only=local_files_only, progress=progress
    )
    checkpoint = _open_folder(folder, source)
    checkpoint.revision = folder.name
    return checkpoint


def _open_folder(folder: Path, name: str) -> Checkpoint:
    config_file = folder / "config.json"
    if not os.path.lexists(config_file):
        raise FileNotFoundError(
            f"{config_file}: no such file; expected a folder with config.json, tokenizer.json and "
            "safetensors"
        )
    config = read_config(config_file)
    generation = _read_if_there(folder / "generation_config.json") or {}
    template = _read_template(folder)
    tensors = open_weights(folder)
    try:
        _check_tensors(config, tensors, folder)
    except BaseException:
        tensors.close()
        raise
    return Checkpoint(
        path=folder,
        name=name,
        config=config,
        tensors=tensors,
        generation_config=generation,
        chat_template=template,
        tokenizer_file=folder / "tokenizer.json",
        preprocessor=_read_if_there(folder / "preprocessor_config.json"),
        video_preprocessor=_read_if_there(folder / "video_preprocessor_config.json"),
    )


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if os.path.lexists(path) else None


def _read_template(folder: Path) -> str | None:
    """chat_template.jinja, else `chat_template` of tokenizer_config.json.

    There it is a string, or a list of which the entry named "default" counts.
    """
    own, config_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if os.path.lexists(own):
        return read_text(own, limit=MAX_TEMPLATE_BYTES)
    if not os.path.lexists(config_file):
        return None
    template = read_json(config_file).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"{config_file}: chat_template={shown(template)}: expected a string")
    return template


# Tensors against the config


def _expected_tensors(geometry: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    from . import _core

    return _core.expected_tensors(geometry)


def _check_tensors(config: Config, tensors: Tensors, folder: Path) -> None:
    """Every tensor the config asks for, in its shape, and none beside; MTP and vision tensors may
    be absent.
    """
    text = config.text
    _check_head(text, tensors, folder)
    if EMBEDDING in tensors and (rows := tensors.span(EMBEDDING).shape[:1]) != (text.vocab_size,):
        raise ModelFormatError(
            f"{folder}: vocab_size={text.vocab_size} in config.json but {EMBEDDING} has "
            f"{rows[0] if rows else 0} rows"
        )
    visual = [name for name in tensors if name.startswith("model.visual.")]
    if visual and config.vision is None:
        raise ModelFormatError(
            f"{folder}: {len(visual)} vision tensors ({shown(visual[0])}, ...) but config.json has "
            "no vision_config"
        )
    expected = dict(_expected_tensors(config.geometry(vision=bool(visual))))
    drafts = [name for name in tensors if name.startswith("mtp.")]
    if drafts and text.mtp_num_hidden_layers and not text.mtp_use_dedicated_embeddings:
        expected |= mtp_tensors(text)
        drafts = []
    missing = [name for name in expected if name not in tensors]
    extra = sorted(set(tensors) - set(expected) - set(drafts))
    wrong = [
        f"{shown(name)} is {list(tensors.span(name).shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors.span(name).shape != tuple(shape)
    ]
    faults = [
        _first_five(len(missing), "missing", map(shown, missing)),
        _first_five(len(extra), "unexpected", map(shown, extra)),
        _first_five(len(wrong), "of the wrong shape", wrong),
    ]
    if any(faults):
        raise ModelFormatError(
            f"{folder}: tensors do not match config.json: {'; '.join(filter(None, faults))}"
        )


def _check_head(text: TextConfig, tensors: Tensors, folder: Path) -> None:
    if text.tie_word_embeddings and HEAD in tensors:
        raise ModelFormatError(
            f"{folder}: tie_word_embeddings=true in config.json but {HEAD} is there; one of them "
            "is wrong"
        )
    if not text.tie_word_embeddings and HEAD not in tensors and EMBEDDING in tensors:
        raise ModelFormatError(
            f"{folder}: tie_word_embeddings=false in config.json but {HEAD} is missing; one of "
            "them is wrong"
        )


def _first_five(count: int, kind: str, items: Iterable[str]) -> str:
    if not count:
        return ""
    listed = [item for item, _ in zip(items, range(5), strict=False)]
    return f"{count} {kind}: {', '.join(listed)}{', ...' if count > 5 else ''}"


def mtp_tensors(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the MTP tensors: per layer a full-attention block, and what joins it to the
    model.
    """
    hidden, inner, dim = text.hidden_size, text.intermediate_size, text.head_dim
    queries, keys = text.num_attention_heads * dim, text.num_key_value_heads * dim
    found: dict[str, tuple[int, ...]] = {"mtp.fc.weight": (hidden, 2 * hidden)}
    for norm in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        found[f"mtp.{norm}.weight"] = (hidden,)
    for i in range(text.mtp_num_hidden_layers):
        layer = f"mtp.layers.{i}."
        found |= {
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (2 * queries, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, queries),
            layer + "self_attn.q_norm.weight": (dim,),
            layer + "self_attn.k_norm.weight": (dim,),
        }
    return found


def pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The elements of a contiguous array in flat pieces of at most PIECE."""
    flat = array.reshape(-1)
    for begin in range(0, flat.size, PIECE):
        yield flat[begin : begin + PIECE]
