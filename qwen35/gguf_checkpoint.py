"""A GGUF file, and the mmproj file that sees for it, opened and checked as a Checkpoint.

Matrices stay in the file as they are, value heads in the file's order (the core knows it); vectors
are turned into those of a checkpoint. Reading `tensors` gives every tensor in a checkpoint's order
under its released name, blocks decoded.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, BlockSpan
from .checkpoint import Checkpoint, mtp_tensors
from .config import Config
from .errors import Error, ModelFormatError
from .gguf_config import read_config, read_preprocessor
from .gguf_file import GgufFile, GgufModel, GgufSpan, open_gguf
from .gguf_names import Source, bind, released_shape, restored
from .gguf_tokenizer import chat_template, generation_config, has_vocabulary, read_vocabulary
from .safetensors_file import Span

EMBEDDING = "token_embd.weight"
PRECISE = ("bf16", "f16", "f32")  # an mmproj file's name says its type; in this order


class GgufTensors(Mapping[str, NDArray[Any]]):
    """All tensors under their released names: read-only, made when asked for.

    `stored` is what the core runs; it keeps value heads in the file's order where
    `tiled_value_heads` says so.
    """

    def __init__(self, models: list[tuple[GgufModel, dict[str, Source]]], config: Config) -> None:
        text = config.text
        self.files: list[GgufFile] = [file for model, _ in models for file in model.files]
        self.tiled_value_heads = text.linear_num_key_heads != text.linear_num_value_heads
        self._head_dim = text.linear_value_head_dim
        self._homes = {
            name: (model, source) for model, sources in models for name, source in sources.items()
        }
        self._kept: dict[str, NDArray[Any] | Blocks] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        _, source = self._homes[name]
        own = self.stored(name)
        array = own.decode() if isinstance(own, Blocks) else own
        order = dataclasses.replace(source, transform=None, name="", stored=())
        array = restored(order, [array], head_dim=self._head_dim)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def stored(self, name: str) -> NDArray[Any] | Blocks:
        """A tensor in the file's order: a matrix as it lies there, a vector as in a checkpoint."""
        if name in self._kept:
            return self._kept[name]
        model, source = self._homes[name]
        arrays = [model[part] for part in source.stored]
        type = self._spans(name)[0].type
        if not type.is_float:
            return Blocks(type.name.lower(), arrays[0])
        plain = dataclasses.replace(source, rows=None, column_heads=None)
        found = np.ascontiguousarray(restored(plain, arrays, head_dim=self._head_dim))
        if found is not arrays[0] and not np.shares_memory(found, arrays[0]):
            self._kept[name] = found
        found.flags.writeable = False
        return found

    def span(self, name: str) -> Span | BlockSpan:
        """Shape, type and size of a tensor, without touching its data."""
        source, own = self._homes[name][1], self._spans(name)
        shape = released_shape(source, [span.shape for span in own])
        size, type = sum(span.nbytes for span in own), own[0].type
        kept = self._kept.get(name)
        if isinstance(kept, Blocks):
            return BlockSpan(name, kept.type, shape, kept.nbytes)
        if kept is not None:
            return Span(name, kept.dtype, shape, 0, kept.nbytes)
        if not type.is_float:
            return BlockSpan(name, type.name.lower(), shape, size)
        return Span(name, type.dtype, shape, own[0].begin, size)

    def _spans(self, name: str) -> list[GgufSpan]:
        model, source = self._homes[name]
        return [model.spans[part] for part in source.stored]

    def replace(self, name: str, value: NDArray[Any] | Blocks) -> None:
        """Let `value`, in the file's order, stand for a tensor from now on."""
        (value.data if isinstance(value, Blocks) else value).flags.writeable = False
        self._kept[name] = value

    def let_go(self, name: str) -> None:
        """Have a tensor's pages leave memory until they are read again."""
        model, source = self._homes[name]
        for part in source.stored:
            model.let_go(part)

    def home(self, name: str) -> tuple[GgufModel, Source]:
        """The file that a tensor is stored in, and how it is made of what lies there."""
        return self._homes[name]

    def close(self) -> None:
        """Let go of the files; views that are still held stay valid."""
        self._kept = {}
        for file in self.files:
            file.close()


def open_gguf_checkpoint(
    path: Path, mmproj: Path | None = None, *, vision: bool = True
) -> Checkpoint:
    """Open a text file (any of its parts) and the vision file given, or found beside it.

    Raises FileNotFoundError, ModelFormatError for a broken or contradictory file,
    UnsupportedModelError for another architecture or tensor type.
    """
    text = open_gguf(path)
    tower: GgufModel | None = None
    try:
        tower = _vision_file(text, mmproj) if vision or mmproj is not None else None
        return _checkpoint(text, tower)
    except BaseException:
        for model in (text, tower):
            if model is not None:
                model.close()
        raise


def _vision_file(text: GgufModel, given: Path | None) -> GgufModel | None:
    """The vision file given; else the best of those beside the text file, if it fits: one that
    bears its name, as `qwen35 quantize` writes it, before others.
    """
    if given is not None:
        return open_gguf(given)
    names = [p for p in text.path.parent.glob("*mmproj*.gguf") if p != text.path and p.is_file()]
    ranks = {p: [t in p.name.lower() for t in PRECISE] for p in names}
    stem = f"mmproj-{text.path.stem}-".lower()
    own = {p: p.name.lower().startswith(stem) for p in names}
    for found in sorted(names, key=lambda p: (not own[p], [not x for x in ranks[p]], p.name)):
        try:
            tower = open_gguf(found)
            try:
                read_config(text, tower)
            except BaseException:
                tower.close()
                raise
            return tower
        except Error as error:
            warnings.warn(f"{error}; loading without it (mmproj=FILE names another)", stacklevel=6)
    return None


def _checkpoint(text: GgufModel, tower: GgufModel | None) -> Checkpoint:
    rows = text.spans[EMBEDDING].shape[0] if EMBEDDING in text.spans else None
    known = has_vocabulary(text.metadata)
    vocabulary = read_vocabulary(text.metadata, rows=rows) if known else None
    config = read_config(text, tower, token_ids=vocabulary.added if vocabulary else None)
    config = _without_absent_drafts(text, config)
    settings = read_preprocessor(tower) if tower is not None else None
    return Checkpoint(
        path=text.path,
        name=text.path.stem,
        config=config,
        tensors=_tensors(text, tower, config),
        generation_config=generation_config(text.metadata),
        chat_template=chat_template(text.metadata),
        tokenizer_file=text.path.parent / "tokenizer.json",  # for a file without vocabulary
        vocabulary=vocabulary,
        preprocessor=settings,
        video_preprocessor=settings,
    )


def _without_absent_drafts(text: GgufModel, config: Config) -> Config:
    """Files are often published without the MTP blocks that their metadata counts."""
    layers = config.text.num_hidden_layers
    if any(name.startswith(f"blk.{layers}.") for name in text.spans):
        return config
    return dataclasses.replace(
        config, text=dataclasses.replace(config.text, mtp_num_hidden_layers=0)
    )


def _tensors(text: GgufModel, tower: GgufModel | None, config: Config) -> GgufTensors:
    from . import _core

    everything = _core.expected_tensors(config.geometry(vision=tower is not None))
    seen = [(n, s) for n, s in everything if n.startswith("model.visual.")]
    read = [(n, s) for n, s in everything if not n.startswith("model.visual.")]
    if config.text.mtp_num_hidden_layers:
        read += mtp_tensors(config.text).items()
    deepstack = config.vision.deepstack_visual_indexes if config.vision else ()
    models = [(text, bind(read, text.spans, config.text, where=str(text.path)))]
    if tower is not None:
        where = str(tower.path)
        found = bind(seen, tower.spans, config.text, deepstack=deepstack, where=where)
        models.append((tower, found))
        position = "model.visual.pos_embed.weight"
        if not tower.spans[found[position].stored[0]].type.is_float:
            raise ModelFormatError(f"{where}: v.position_embd.weight: expected F32, F16 or BF16")
    return GgufTensors(models, config)
