"""Oracle: transformers' Qwen3_5ForConditionalGeneration in float32 on prompts with two images and a
video: positions, logits, greedy tokens. DeepStack, which its Qwen3.5 has no code for, is Qwen3-VL's
tower with its features added behind the first layers by hooks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import torch
from checkpoints import VISION, write_checkpoint
from safetensors.numpy import load_file

import qwen35

RNG = np.random.default_rng(7)
WIDE = RNG.integers(0, 256, (64, 160, 3), dtype=np.uint8)
TALL = RNG.integers(0, 256, (128, 64, 3), dtype=np.uint8)
CLIP = RNG.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
SMALL = {"size": {"shortest_edge": 1024, "longest_edge": 2**20}}
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": WIDE},
            {"type": "text", "text": "and then "},
            {"type": "video", "video": CLIP, "fps": 4},
            {"type": "text", "text": "What came first?"},
        ],
    },
    {"role": "assistant", "content": "a b"},
    {
        "role": "user",
        "content": [{"type": "image", "image": TALL}, {"type": "text", "text": "this?"}],
    },
]


@pytest.fixture(scope="module", params=[[], [1, 0]], ids=["plain", "deepstack"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing")
    vision = VISION | {"out_hidden_size": 72, "deepstack_visual_indexes": request.param}
    config = {"vision_config": vision}
    return write_checkpoint(made, dtype="float32", config=config, mtp=False, preprocessor=SMALL)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[qwen35.Model]:
    with qwen35.load(folder, dtype="float32", context=1000) as model:
        yield model


@contextmanager
def deepstack(
    model: Any, folder: Path, inputs: dict[str, torch.Tensor], visual: torch.Tensor
) -> Iterator[None]:
    """Add Qwen3-VL's features of both media behind the first layers, as its text model does."""
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    if not config["deepstack_visual_indexes"]:
        yield
        return
    tower = hf.vision_model(config, seed=0)
    weights = load_file(folder / "model.safetensors")
    prefix = "model.visual."
    tower.load_state_dict(
        {
            name.removeprefix(prefix): torch.tensor(array)
            for name, array in weights.items()
            if name.startswith(prefix)
        }
    )
    kinds = (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
    image, video = (hf.features(tower, inputs[p], inputs[g]) for p, g in kinds)
    with ExitStack() as hooks:
        for layer in range(len(config["deepstack_visual_indexes"])):
            add = torch.zeros(visual.shape[0], 72)
            add[visual == 1] = torch.tensor(image[:, 1 + layer])
            add[visual == 2] = torch.tensor(video[:, 1 + layer])

            def hook(_: Any, __: Any, out: torch.Tensor, add: torch.Tensor = add) -> torch.Tensor:
                return out + add[None]

            module = model.model.language_model.layers[layer]
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


@torch.no_grad()
def test_two_images_and_a_video(ours: qwen35.Model, folder: Path) -> None:
    """Positions are equal; logits differ by 2e-4 of the largest at most (DESIGN.md)."""
    prompt = ours.prompt(MESSAGES)
    inputs = hf.inputs_of(prompt, ours.config)
    model = hf.seeing_model(folder)
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        inputs["video_grid_thw"],
    )
    assert np.array_equal(prompt.position_ids, positions[:, 0].numpy())
    with deepstack(model, folder, inputs, inputs["mm_token_type_ids"][0]):
        want = model(**inputs).logits[0].numpy()
    got = ours.logits(prompt)
    assert abs(got - want).max() <= 2e-4 * abs(want).max()
    assert np.allclose(ours.logits(prompt, last_only=True), got[-1:], atol=1e-6)


@torch.no_grad()
def test_decoding_goes_on_behind_the_images(folder: Path, ours: qwen35.Model) -> None:
    """Greedy tokens through transformers' cache and its rope delta."""
    if ours._core.feature_shape[0] > 1:
        pytest.skip("transformers' Qwen3.5 decodes without DeepStack")
    prompt = ours.prompt(MESSAGES)
    inputs = hf.inputs_of(prompt, ours.config)
    out = hf.seeing_model(folder).generate(
        **inputs, max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    stream = ours.generate(prompt, max_tokens=12, temperature=0.0, ignore_eos=True)
    assert stream.result().token_ids == out[0, len(prompt.ids) :].tolist()


@torch.no_grad()
def test_bfloat16_weights(tmp_path: Path) -> None:
    """Mean KL to transformers in float32 on the same bf16 weights: at most 1e-4 nats (DESIGN.md),
    and below that of its own bf16 run.
    """
    folder = write_checkpoint(tmp_path / "bf16", mtp=False, preprocessor=SMALL)
    with qwen35.load(folder, context=1000) as ours:
        prompt = ours.prompt(MESSAGES)
        got, inputs = ours.logits(prompt), hf.inputs_of(prompt, ours.config)
    model = hf.seeing_model(folder)
    want = model(**inputs).logits[0].numpy()
    half = model.to(torch.bfloat16)(**inputs).logits[0].float().numpy()
    assert hf.mean_kl(want, got) <= min(1e-4, hf.mean_kl(want, half))
