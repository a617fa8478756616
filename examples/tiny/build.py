#!/usr/bin/env python3
"""Write tiny's config and generation defaults beside its chat template, and a tokenizer if asked.

    python examples/tiny/build.py [--folder qwen35/tiny] [--new-tokenizer]

The tokenizer is byte-level BPE over text drawn from the very tasks, with Qwen3.5's pre-tokenizer
and its special tokens at the end. A new one needs a model trained anew, and the shipped one came
from an earlier state of the tasks: so an existing tokenizer.json stays unless --new-tokenizer is
given.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import words
from render import Renderer
from tasks import TASKS, example
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"
BPE_SIZE = 2048
SPECIALS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>
<|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>
""".split()
PLAIN = {s for s in SPECIALS if not s.startswith("<|") or s[2:5] == "fim"} | {
    "<|repo_name|>",
    "<|file_sep|>",
}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROSE = Path(__file__).with_name("prose.txt").read_text()


def corpus() -> Iterator[str]:
    """Rendered examples of every task, the word lists and a little prose."""
    rng, renderer = Random(1), Renderer(FOLDER)
    between = re.compile("|".join(map(re.escape, SPECIALS)))
    for i in range(6000):
        task = rng.choice(list(TASKS))
        one = example(rng, task, held=False, level=0.1, thinking=i % 2 == 0)
        yield from filter(None, between.split("".join(renderer.text(one))))
    lists = [v for n, v in vars(words).items() if n.isupper() and isinstance(v, list)]
    for _ in range(30):
        yield PROSE
        for entries in lists:
            yield " " + " ".join(entries)
            yield "\n".join(entries)
        yield "\n".join(words.NAMES + [c.capitalize() for c in words.WORDS])


def tokenizer() -> Tokenizer:
    """The trained tokenizer with Qwen's special tokens after its 2,048 entries."""
    tok = Tokenizer(BPE(fuse_unk=False))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tok.train_from_iterator(corpus(), trainer)
    assert tok.get_vocab_size() == BPE_SIZE, tok.get_vocab_size()
    tok.add_tokens([AddedToken(s, special=s not in PLAIN, normalized=False) for s in SPECIALS])
    return tok


def config(ids: dict[str, int], vocab: int) -> dict:
    """config.json in the released layout."""
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": True,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": ids["<|endoftext|>"],
            "full_attention_interval": 4,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 192,
            "initializer_range": 0.02,
            "intermediate_size": 384,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 32,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_value_head_dim": 32,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 8192,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 4,
            "num_hidden_layers": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
                "rope_theta": 100000,
                "rope_type": "default",
            },
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": vocab,
        },
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 128,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 256,
            "model_type": "qwen3_5",
            "num_heads": 4,
            "num_position_embeddings": 64,
            "out_hidden_size": 192,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def processor(kind: str, longest: int) -> dict:
    """preprocessor_config.json of images or videos: sides are multiples of 32, pixels (of all
    frames) from 64 x 64 to `longest`."""
    out = {
        "size": {"longest_edge": longest, "shortest_edge": 64 * 64},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    name = {"image": "Qwen2VLImageProcessorFast", "video": "Qwen3VLVideoProcessor"}[kind]
    return out | {f"{kind}_processor_type": name}


def write(folder: Path, name: str, value: dict) -> None:
    """One JSON file."""
    (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument(
        "--folder", type=Path, default=FOLDER, help="where to write (default qwen35/tiny)"
    )
    ap.add_argument("--new-tokenizer", action="store_true", help="train tokenizer.json again")
    args = ap.parse_args()
    folder, path = args.folder, args.folder / "tokenizer.json"
    if args.new_tokenizer or not path.exists():
        tokenizer().save(str(path))
    tok = Tokenizer.from_file(str(path))
    ids = {s: tok.token_to_id(s) for s in SPECIALS}
    added = {
        str(i): {
            "content": s,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": s not in PLAIN,
        }
        for s, i in ids.items()
    }
    cfg = config(ids, -(-tok.get_vocab_size() // 64) * 64)
    write(folder, "config.json", cfg)
    write(folder, "preprocessor_config.json", processor("image", 128 * 128))
    write(folder, "video_preprocessor_config.json", processor("video", 64 * 128 * 128))
    write(
        folder,
        "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": cfg["text_config"]["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write(
        folder,
        "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    )
    print(f"{folder}: {tok.get_vocab_size()} tokens, {cfg['text_config']['vocab_size']} rows")


if __name__ == "__main__":
    main()
