"""A file of tensors mapped read-only: what the formats have in common."""

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError


class Place(Protocol):
    """Where a tensor lies in its file, in bytes."""

    @property
    def begin(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Place)  # the format's own span: where a tensor lies, and what it is


def is_mapped(array: NDArray[Any]) -> bool:
    """Whether an array's bytes are those of a mapped file."""
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)


class MappedFile(Mapping[str, NDArray[Any]], Generic[S]):
    """The tensors of one file, in file order: read-only views, made when asked for.

    A view keeps the mapping alive, also after close(). A format sets `spans` once it has checked
    the header, and reads a tensor by `__getitem__`.
    """

    spans: dict[str, S]

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self._map: mmap.mmap | None = data

    def __iter__(self) -> Iterator[str]:
        return iter(self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def opened(self) -> mmap.mmap:
        """The mapping; ValueError after close()."""
        if self._map is None:
            raise ValueError(f"{self.path}: closed")
        return self._map

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._map) if self._map is not None else 0

    def check_unchanged(self) -> None:
        """Raise ModelFormatError when the mapped file has another size now: reading on could kill
        the process.
        """
        if self._map is not None and self._map.size() != len(self._map):
            raise ModelFormatError(
                f"{self.path}: the file has {self._map.size()} bytes now and had {len(self._map)} "
                "when it was loaded; load the model again (replace files by renaming, never in "
                "place)"
            )

    def read_ahead(self, chunk_bytes: int = 64 << 20) -> Iterator[int]:
        """Ask the system to read the file into its cache, piece by piece, yielding the bytes done.

        Costs milliseconds where the file is cached, else about the reading itself.
        """
        for begin in range(0, self.nbytes, chunk_bytes):
            length = min(chunk_bytes, self.nbytes - begin)
            if self._map is not None and hasattr(mmap, "MADV_WILLNEED"):
                with contextlib.suppress(OSError):  # advice only
                    self._map.madvise(mmap.MADV_WILLNEED, begin, length)
            yield begin + length

    def let_go(self, name: str) -> None:
        """Have a tensor's pages leave this process's memory. Views of it stay valid: what is read
        again comes from the system's cache, or the disk.
        """
        span, page = self.spans[name], mmap.PAGESIZE
        begin, end = -(-span.begin // page) * page, (span.begin + span.nbytes) // page * page
        if begin < end and self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):  # advice only
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Let go of the mapping; it goes away with its last view."""
        self._map = None
