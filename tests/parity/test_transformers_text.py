"""Oracle: transformers on the same checkpoint folder. Text, through the public API.

Float32 logits within 2e-4 of the largest |logit|: the project's bound. Two float32 implementations
differ by the order of their sums; here that is about 1e-5, and the DeltaNet's output norm can
magnify it tenfold where a head's output is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import hf
import numpy as np
import pytest
import torch

import qwen35

LENGTHS = (1, 3, 63, 64, 65, 300)
KNOWN_IDS = max(checkpoints.TOKEN_IDS.values()) + 1  # the model has some rows more
# The plainest decoding, whatever presets a model comes with.
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
}
# Every case: pairwise different dimensions, none a multiple of a vector width.
EQUAL = {"linear_num_key_heads": 3, "linear_num_value_heads": 3}
HALF_TURNED = {"partial_rotary_factor": 0.5, "mrope_section": [3, 2, 1]}
CASES: dict[str, dict[str, Any]] = {
    "Hv=Hk tied": {**EQUAL, "tie_word_embeddings": True},
    "Hv=Hk untied": {**EQUAL, "tie_word_embeddings": False},
    "Hv=2Hk tied": {"tie_word_embeddings": True},
    "Hv=2Hk untied": {
        "tie_word_embeddings": False,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
    },
    "Hv=3Hk tied": {
        "linear_num_value_heads": 6,
        "tie_word_embeddings": True,
        "linear_conv_kernel_dim": 3,
    },
    "Hv=3Hk untied": {
        "linear_num_value_heads": 6,
        "tie_word_embeddings": False,
        "num_hidden_layers": 6,
        "linear_key_head_dim": 35,
        "linear_value_head_dim": 53,
        "head_dim": 24,
        "rope_parameters": checkpoints.TEXT["rope_parameters"] | HALF_TURNED,
    },
}


class Case(NamedTuple):
    folder: Path
    exact: Any  # transformers, float32
    ids: np.ndarray  # [300]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    seed = list(CASES).index(request.param)
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.write_checkpoint(folder, seed=seed, vision=False, **CASES[request.param])
    ids = np.random.default_rng(seed).integers(0, KNOWN_IDS, 300).astype(np.int32)
    return Case(folder, hf.from_folder(folder), ids)


@pytest.fixture(scope="module")
def ours(case: Case) -> Iterator[qwen35.Model]:
    with qwen35.load(case.folder, dtype="float32") as model:
        yield model


@pytest.mark.parametrize("T", LENGTHS)
def test_logits_float32(case: Case, ours: qwen35.Model, T: int) -> None:
    want = hf.logits(case.exact, case.ids[:T])
    got = ours.logits(case.ids[:T])
    assert got.shape == want.shape
    assert abs(got - want).max() <= 2e-4 * abs(want).max()


def test_kl_of_bf16_weights(case: Case) -> None:
    """Ours keeps activations in float32: closer to the float32 run than transformers with bfloat16
    activations.
    """
    want = hf.logits(case.exact, case.ids)
    theirs = hf.mean_kl(want, hf.logits(hf.from_folder(case.folder, torch.bfloat16), case.ids))
    with qwen35.load(case.folder) as model:
        got = hf.mean_kl(want, model.logits(case.ids))
    assert got <= 1e-4
    assert got < theirs


def test_greedy(case: Case, ours: qwen35.Model) -> None:
    want = hf.greedy(case.exact, case.ids[:20], 40)
    stream = ours.generate(case.ids[:20], max_tokens=40, **GREEDY)
    assert [token.id for token in stream] == want


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_stored_types(tmp_path: Path, dtype: str) -> None:
    checkpoints.write_checkpoint(tmp_path, seed=11, dtype=dtype, vision=False)
    ids = np.random.default_rng(11).integers(0, KNOWN_IDS, 70)
    want = hf.logits(hf.from_folder(tmp_path), ids)
    with qwen35.load(tmp_path, dtype="float32") as model:
        assert abs(model.logits(ids) - want).max() <= 2e-4 * abs(want).max()


def test_yarn(tmp_path: Path) -> None:
    rope = dict(checkpoints.TEXT["rope_parameters"])
    rope |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 5000.0,
    }
    checkpoints.write_checkpoint(
        tmp_path, seed=12, vision=False, rope_parameters=rope, max_position_embeddings=256
    )
    ids = np.random.default_rng(12).integers(0, KNOWN_IDS, 250)
    want = hf.logits(hf.from_folder(tmp_path), ids)
    with qwen35.load(tmp_path, dtype="float32") as model:
        assert abs(model.logits(ids) - want).max() <= 2e-4 * abs(want).max()


def test_text_only_layout(tmp_path: Path) -> None:
    """A folder saved by Qwen3_5ForCausalLM itself: other names, another config.json."""
    model = hf.text_model(hf.text_config(hidden_size=68, vocab_size=307), seed=13)
    model.save_pretrained(tmp_path)
    checkpoints.write_tokenizer(tmp_path)
    ids = np.random.default_rng(13).integers(0, 307, 40)
    want = hf.logits(model, ids)
    with qwen35.load(tmp_path, dtype="float32") as ours:
        assert abs(ours.logits(ids) - want).max() <= 2e-4 * abs(want).max()
