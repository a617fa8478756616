"""Oracle: literals. The index of shards; the numbers in the test names are items of the list of
hostile inputs the project keeps (32-37).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    make_tensors,
    refusal,
    write_json,
    write_safetensors,
    write_shards,
)

from qwen35.checkpoint import open_checkpoint
from qwen35.errors import ModelFormatError

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.language_model.embed_tokens.weight"


def edit_index(folder: Path, change: Any) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    write_json(path, index)


# 32-37: the index


@pytest.mark.parametrize(
    "name",
    [
        "../../x.safetensors",
        "/etc/passwd",
        "https://example.org/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "sub/x.safetensors",
        "",
        ".",
        "..",
        "a\0b",
        "a\nb",
    ],
)
def test_32_paths(sharded: Path, name: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({EMBEDDING: name}))
    message = refusal(sharded)
    assert "without a path" in message and INDEX in message
    assert "\n" not in message and "\0" not in message


def test_32_link_that_leaves(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "a symbolic link that leaves the folder" in refusal(sharded)


def test_32_links_of_the_hub_cache(sharded: Path, tmp_path: Path) -> None:
    """models--x/snapshots/<commit>/file -> ../../blobs/<hash>"""
    cache = tmp_path / "models--me--model"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sharded.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert len(open_checkpoint(snapshot).tensors) > 100


def test_33_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    message = refusal(sharded)
    assert "'model-00002-of-00003.safetensors' is missing; download it again" in message


def test_34_in_two_shards(sharded: Path) -> None:
    """Two shards hold the tensor; the index can name only one of them."""
    first, second = (sharded / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    tensors = make_tensors(json.loads((sharded / "config.json").read_text()))
    names = [n for n, file in json.loads((sharded / INDEX).read_text())["weight_map"].items()]
    held = {n: tensors[n] for n in names[: len(names) // 3]} | {names[40]: tensors[names[40]]}
    write_safetensors(first, held)
    message = refusal(sharded)
    assert str(first) in message and repr(names[40]) in message and second.name in message


def test_34_in_no_shard(sharded: Path) -> None:
    file = "model-00001-of-00003.safetensors"
    edit_index(sharded, lambda index: index["weight_map"].update({"ghost": file}))
    message = refusal(sharded)
    assert file in message and "'ghost' is not in it" in message


def test_34_not_in_the_index(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop(EMBEDDING))
    assert f"'{EMBEDDING}', which is in no shard by {INDEX}" in refusal(sharded)


@pytest.mark.parametrize("total", [1, "many", -1, 10**30])
def test_35_total_size(sharded: Path, total: Any) -> None:
    edit_index(sharded, lambda index: index["metadata"].update(total_size=total))
    with pytest.warns(UserWarning, match="total_size="):
        open_checkpoint(sharded)


@pytest.mark.parametrize("metadata", [None, [], {}])
def test_35_no_total_size(sharded: Path, metadata: Any) -> None:
    edit_index(sharded, lambda index: index.update(metadata=metadata))
    open_checkpoint(sharded)


@pytest.mark.parametrize("value", [None, 3, ["x"], {"a": "b"}])
def test_36_values(sharded: Path, value: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({EMBEDDING: value}))
    message = refusal(sharded)
    assert f"weight_map['{EMBEDDING}']=" in message and "expected a file name" in message


@pytest.mark.parametrize("value", [None, [], "x", {}])
def test_36_map(sharded: Path, value: Any) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=value))
    assert "weight_map=" in refusal(sharded)


def test_36_index_is_a_list(sharded: Path) -> None:
    write_json(sharded / INDEX, ["x"])
    assert "expected a JSON object, found a list" in refusal(sharded)


def test_36_a_million_entries(sharded: Path) -> None:
    entries = ",".join(f'"{i}":"x"' for i in range(1_000_000))
    (sharded / INDEX).write_text(f'{{"weight_map":{{{entries}}}}}')
    assert "more than 1000000 strings" in refusal(sharded)


@pytest.mark.parametrize("place", ["", ".cache/huggingface/download"])
def test_37_half_downloaded(sharded: Path, place: str) -> None:
    """Beside a missing shard, a truncated one, and no weights at all."""
    (sharded / place).mkdir(parents=True, exist_ok=True)
    (sharded / place / "abc.incomplete").write_bytes(b"half")
    hint = "'abc.incomplete' is a half-finished download: run it again, it resumes"
    shard = sharded / "model-00003-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)
    message = refusal(sharded)
    assert "100 bytes short" in message and hint in message
    shard.unlink()
    message = refusal(sharded)
    assert shard.name in message and hint in message
    (sharded / INDEX).unlink()
    assert hint in refusal(sharded)


def test_half_of_the_weights_changed_under_us(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(ModelFormatError, match="load the model again"):
        checkpoint.check_unchanged()


def test_shards_follow_the_index_order(sharded: Path) -> None:
    fields = json.loads((sharded / "config.json").read_text())
    write_shards(sharded, make_tensors(fields), shards=3)
    assert list(open_checkpoint(sharded).tensors) == list(make_tensors(fields))
