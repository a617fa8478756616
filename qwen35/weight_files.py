"""The weight files of a checkpoint folder: model.safetensors, or shards and the index that says
what lies where.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .blocks import Blocks, BlockSpan
from .errors import ModelFormatError
from .json_file import read_json, shown
from .safetensors_file import SafetensorsFile, Span, open_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Tensors(Mapping[str, NDArray[Any]]):
    """All tensors of a checkpoint under their released names, in file order: read-only views made
    when asked for.

    A text-only checkpoint names its tensors `model.layers...`; here they are
    `model.language_model.layers...` as in the released files.
    """

    tiled_value_heads = False  # GGUF files have them in another order

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self.files = files
        self._homes: dict[str, tuple[SafetensorsFile, str]] = {}
        self._replaced: dict[str, NDArray[Any] | Blocks] = {}
        for file in files:
            for name in file:
                released = _released_name(name)
                if released in self._homes:
                    other = self._homes[released][0].path
                    raise ModelFormatError(
                        f"{file.path}: tensor {shown(released)} is also in {other}; expected it "
                        "once"
                    )
                self._homes[released] = (file, name)

    def __getitem__(self, name: str) -> NDArray[Any]:
        found = self.stored(name)
        return found.decode() if isinstance(found, Blocks) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def stored(self, name: str) -> NDArray[Any] | Blocks:
        """A tensor as the core takes it."""
        if name in self._replaced:
            return self._replaced[name]
        file, inner = self._homes[name]
        return file[inner]

    def span(self, name: str) -> Span | BlockSpan:
        """Shape, dtype and place of a tensor as stored, without touching its data."""
        file, inner = self._homes[name]
        kept = self._replaced.get(name)
        if isinstance(kept, Blocks):
            return BlockSpan(name, kept.type, kept.shape, kept.nbytes)
        return file.spans[inner]

    def replace(self, name: str, value: NDArray[Any] | Blocks) -> None:
        """Let `value` stand for a tensor from now on."""
        (value.data if isinstance(value, Blocks) else value).flags.writeable = False
        self._replaced[name] = value

    def let_go(self, name: str) -> None:
        """Have a tensor's pages leave memory until they are read again."""
        file, inner = self._homes[name]
        file.let_go(inner)

    def close(self) -> None:
        """Let go of the files; views that are still held stay valid."""
        self._replaced = {}
        for file in self.files:
            file.close()


def _released_name(name: str) -> str:
    if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return "model.language_model." + name.removeprefix("model.")
    return name


def open_weights(folder: Path) -> Tensors:
    """Map the weight files of a folder.

    Raises FileNotFoundError when there are none, ModelFormatError for a broken, missing or
    half-downloaded file or an index that contradicts its shards.
    """
    single = folder / SINGLE
    if single.exists():
        return Tensors([_open(single, folder)])
    if (folder / INDEX).exists():
        return Tensors(_open_shards(folder))
    hint = _resume_hint(folder)
    message = f"{folder}: neither {SINGLE} nor {INDEX}"
    if hint:
        raise ModelFormatError(message + hint)
    raise FileNotFoundError(f"{message}; expected the safetensors files of a Qwen3.5 checkpoint")


def _open_shards(folder: Path) -> list[SafetensorsFile]:
    weight_map, total = _read_index(folder / INDEX)
    paths = {name: _shard_path(folder, name) for name in sorted(set(weight_map.values()))}
    files = {name: _open(path, folder) for name, path in paths.items()}
    for tensor, name in weight_map.items():
        if tensor not in files[name].spans:
            raise ModelFormatError(
                f"{paths[name]}: tensor {shown(tensor)} is not in it, although {INDEX} says so"
            )
    for name, file in files.items():
        for tensor in file.spans:
            if weight_map.get(tensor) != name:
                said = weight_map.get(tensor)
                where = "is in no shard" if said is None else f"is in {shown(said)}"
                raise ModelFormatError(
                    f"{file.path}: holds tensor {shown(tensor)}, which {where} by {INDEX}"
                )
    found = sum(span.nbytes for file in files.values() for span in file.spans.values())
    if total is not None and total != found:
        warnings.warn(
            f"{folder / INDEX}: metadata.total_size={shown(total)} but the shards hold {found} "
            "bytes; the shards count",
            stacklevel=2,
        )
    return list(files.values())


def _read_index(path: Path) -> tuple[dict[str, str], Any]:
    """The weight map (tensor -> file name) and metadata.total_size, which nothing relies on."""
    index = read_json(path)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(
            f"{path}: weight_map={shown(weight_map)}: expected an object of tensor name to file "
            "name"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise ModelFormatError(
                f"{path}: weight_map[{shown(tensor)}]={shown(name)}: expected a file name"
            )
    return weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None


def _shard_path(folder: Path, name: str) -> Path:
    """The shard's path; only plain file names inside the folder, or links into the hub cache's own
    blobs.
    """
    if set(name) & set("/\\:") or name in ("", ".", "..") or not name.isprintable():
        raise ModelFormatError(
            f"{folder / INDEX}: weight_map names the file {shown(name)}: expected a name in this "
            "folder, without a path"
        )
    path, here = folder / name, folder.resolve()
    if not path.exists():
        raise ModelFormatError(
            f"{folder}: shard {shown(name)} is "
            f"missing{_resume_hint(folder) or '; download it again'}"
        )
    homes = [here] + ([here.parent.parent / "blobs"] if here.parent.name == "snapshots" else [])
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ModelFormatError(f"{path}: a symbolic link that leaves the folder; expected the file")
    return path


def _open(path: Path, folder: Path) -> SafetensorsFile:
    """Map a file; if it is broken and a download was cut off, say so."""
    try:
        return open_safetensors(path)
    except ModelFormatError as error:
        hint = _resume_hint(folder)
        if not hint:
            raise
        raise ModelFormatError(f"{error}{hint}") from None


def _resume_hint(folder: Path) -> str:
    """What to do about a download that was cut off, or an empty string when none is seen."""
    here = folder.resolve()
    places = [here, here / ".cache" / "huggingface" / "download", here.parent.parent / "blobs"]
    for place in places if here.parent.name == "snapshots" else places[:2]:
        for partial in sorted(place.glob("*.incomplete")):
            return f"; {shown(partial.name)} is a half-finished download: run it again, it resumes"
    return ""
