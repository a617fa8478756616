"""Oracle: transformers, float32. The NumPy reference (float64) computes the same model.

The tolerance is float32's: transformers' chunked delta rule alone is 4e-5 of the largest logit away
from float64 on these weights, where a wrong formula is off by more than 1e-2.
"""

from typing import Any

import hf
import numpy as np
import pytest
import torch
from reference import Dims, Reference

TOLERANCE = 1e-4
YARN = {
    "rope_type": "yarn",
    "factor": 3.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [3, 2, 1],
}
CASES: dict[str, dict[str, Any]] = {
    "Hv=Hk tied": {"linear_num_value_heads": 2, "tie_word_embeddings": True},
    "Hv=2Hk": {},
    "Hv=3Hk": {"linear_num_value_heads": 6},
    "K=3": {"linear_conv_kernel_dim": 3},
    "one kv head": {"num_key_value_heads": 1},
    "linear last": {
        "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]
    },
    "yarn": {"rope_parameters": YARN, "max_position_embeddings": 384},
}


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error as a share of the largest value."""
    return float(abs(got - want).max() / abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str) -> None:
    config = hf.text_config(**CASES[case])
    model = hf.text_model(config, seed=len(case))
    reference = Reference(config, hf.tensors_of(model))
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], 131)
    assert relative_error(reference.logits(ids), hf.logits(model, ids)) <= TOLERANCE


def test_three_position_rows() -> None:
    """Positions as images make them: time stands still while height and width run."""
    config = hf.text_config()
    model = hf.text_model(config, seed=2)
    ids = np.random.default_rng(2).integers(0, config["vocab_size"], 90)
    at = np.stack([np.arange(90) // 9, np.arange(90) // 7, np.arange(90) % 31])
    got = Reference(config, hf.tensors_of(model)).logits(ids, position_ids=at)
    assert relative_error(got, hf.logits(model, ids, at)) <= TOLERANCE


def test_token_by_token() -> None:
    """transformers' single-token code path and cache, against the reference in one piece."""
    config = hf.text_config(linear_num_value_heads=6)
    model = hf.text_model(config, seed=3)
    ids = np.random.default_rng(3).integers(0, config["vocab_size"], 20)
    cache, rows = None, []
    with torch.no_grad():
        for token in ids:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, 0].numpy())
    got = Reference(config, hf.tensors_of(model)).logits(ids)
    assert relative_error(got, np.stack(rows)) <= TOLERANCE


def test_yarn_frequencies() -> None:
    """Bit-equal gain; frequencies to a few roundings: transformers takes powers in float32."""
    config = hf.text_config(rope_parameters=YARN, max_position_embeddings=384)
    rotary = hf.text_model(config, seed=0).model.rotary_emb
    d = Dims.from_config(config)
    assert d.rope_gain == rotary.attention_scaling
    assert d.inv_freq == pytest.approx(rotary.inv_freq.numpy(), rel=3e-7)


def test_drafting_layer() -> None:
    """MtpModel of transformers, one layer, its weights renamed to the checkpoint's `mtp.*`."""
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    config = hf.text_config(num_mtp_layers=1, mtp_layer_types=["full_attention"])
    model = hf.text_model(config, seed=4)
    mtp = MtpModel(model, 1).eval()
    for part, seed in ((mtp.layers, 5), (model, 4)):
        hf.random_weights(part, seed)
    top = {
        "eh_proj": "fc",
        "enorm": "pre_fc_norm_embedding",
        "hnorm": "pre_fc_norm_hidden",
        "post_norm": "norm",
    }
    tensors = hf.tensors_of(model)
    for name, p in mtp.layers[0].state_dict().items():
        head, _, rest = name.partition(".")
        tensors["mtp." + (f"layers.0.{rest}" if head == "mtp_block" else f"{top[head]}.{rest}")] = (
            p.numpy()
        )

    ids = np.random.default_rng(4).integers(0, config["vocab_size"], 41)
    reference = Reference(config, tensors)
    hidden = reference.hidden(ids[:-1], reference.state())
    got = reference.mtp_hidden(ids[1:], hidden, reference.mtp_state())
    with torch.no_grad():
        last = model.model(torch.tensor(ids[:-1])[None]).last_hidden_state
        want = mtp.forward_layer(
            0,
            last,
            torch.arange(1, 41)[None],
            MtpCache(config=model.config.get_mtp_config()),
            input_ids=torch.tensor(ids[1:])[None],
        )
    assert relative_error(got, want[0].numpy()) <= TOLERANCE
