#!/usr/bin/env python3
"""Ask tiny held-out questions, greedily, and count the right answers.

    python examples/tiny/evaluate.py --backend qwen35
    python examples/tiny/evaluate.py --backend transformers --n 100 --out /tmp/tiny-eval
    python examples/tiny/evaluate.py --quantize q8_0 --dtype float32 --out exact
    python examples/tiny/evaluate.py --quantize q8_0 --against exact/results.json

Prints two tables (task by thinking mode; needle by distance, none with --distance-n 0), writes
OUT/results.json and, where matplotlib is installed, OUT/needle.png. An answer counts when its
text, or its tool call with all arguments, is exactly the expected one and the model ended it by
itself; what it thought before does not matter. --against counts the questions that another run,
over the same ones, answered otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from random import Random
from typing import Any, Protocol

from patches import Frame
from render import Renderer
from tasks import EVALUATED, Example, example, needle

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"
DISTANCES = (50, 100, 200, 300, 500, 1000, 1500, 2000)
MAX_TOKENS = 160
CALL = re.compile(r"<tool_call>\s*<function=([^>\n]+)>\n(.*?)</function>\s*</tool_call>", re.S)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>", re.S)


class Backend(Protocol):
    """Something that answers an Example: (text, [(tool, {argument: text})], ended by itself)."""

    def reply(self, one: Example) -> tuple[str, list[tuple[str, dict[str, str]]], bool]: ...


def plain(value: Any) -> str:
    """An argument as the text the model wrote it as."""
    return value if isinstance(value, str) else json.dumps(value)


class Qwen35:
    """This package."""

    def __init__(self, folder: Path, **options: Any):
        import qwen35

        self.model = qwen35.load(str(folder), **options)

    def reply(self, one: Example) -> tuple[str, list[tuple[str, dict[str, str]]], bool]:
        answer = self.model.chat(
            one.messages,
            tools=one.tools,
            enable_thinking=one.thinking,
            temperature=0,
            max_tokens=MAX_TOKENS,
        ).result()
        calls = [(c.name, {k: plain(v) for k, v in c.arguments.items()}) for c in answer.tool_calls]
        return answer.text.strip(), calls, answer.finish_reason in ("stop", "tool_calls")


class Transformers:
    """The reference implementation, f32."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.renderer = Renderer(folder)
        self.model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def reply(self, one: Example) -> tuple[str, list[tuple[str, dict[str, str]]], bool]:
        prompt = self.tokenizer.apply_chat_template(
            one.messages,
            tools=one.tools,
            add_generation_prompt=True,
            enable_thinking=one.thinking,
            tokenize=False,
        )
        prompt, frames = self.renderer.expand(prompt, one)
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        seen = self.seen(one, ids, frames) if frames else {}
        with self.torch.no_grad():
            out = self.model.generate(ids, **seen, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = out[0, ids.shape[1] :]
        ended = new[-1].item() == self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        text = self.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False)
        if one.thinking:
            text = text.partition("</think>")[2]
        calls = [(name, dict(PARAMETER.findall(body))) for name, body in CALL.findall(text)]
        return CALL.sub("", text).strip(), calls, ended

    def seen(self, one: Example, ids: Any, frames: list[Frame]) -> dict[str, Any]:
        """The model's arguments for the images or the one video of an example."""
        torch, config = self.torch, self.model.config
        is_video = bool((ids == config.video_token_id).any())
        grids = [frames[0].grid] if is_video else [f.grid for f in frames]
        times = len(frames) if is_video else 1
        kind, suffix = ("video", "_videos") if is_video else ("image", "")
        pads = ids == getattr(config, f"{kind}_token_id")
        return {
            "mm_token_type_ids": pads.int() * (2 if is_video else 1),
            f"{kind}_grid_thw": torch.tensor([[times, *grid] for grid in grids]),
            f"pixel_values{suffix}": torch.cat([torch.from_numpy(f.pixels) for f in frames]),
        }


def correct(one: Example, text: str, calls: list[tuple[str, dict[str, str]]], ended: bool) -> bool:
    """Whether the reply is the expected one."""
    wanted = [
        (c["function"]["name"], {k: plain(v) for k, v in c["function"]["arguments"].items()})
        for c in one.tool_calls or []
    ]
    return ended and text == one.answer and calls == wanted


def distance_examples(
    renderer: Renderer, distance: int, thinking: bool, n: int, seed: int
) -> list[Example]:
    """Held-out needles whose fact ends `distance` tokens, within 8, before the assistant's turn."""
    rng, out = Random(f"{seed} {distance} {thinking}"), []
    after = distance / 9
    while len(out) < n:
        one = needle(rng, True, 1.0, before=rng.randint(0, 6), after=round(after))
        one.thinking = thinking
        prompt, _ = renderer.text(one)
        tail = prompt[prompt.rindex(one.reasoning) + len(one.reasoning) :]
        actual = len(renderer.tokenizer.encode(tail, add_special_tokens=False).ids)
        after = max(0, after + (distance - actual) / 18)
        if abs(actual - distance) <= 8:
            out.append(one)
    return out


def asked_text(one: Example) -> str:
    """The last message's text."""
    content = one.messages[-1]["content"]
    return content if isinstance(content, str) else " ".join(p.get("text", "") for p in content)


def run(backend: Backend, examples: list[Example], show: int) -> dict[str, Any]:
    """Accuracy, share of answers that stopped by themselves, and what they were."""
    right, stopped, replies = 0, 0, []
    for one in examples:
        text, calls, ended = backend.reply(one)
        replies.append([text, [list(call) for call in calls], ended])
        ok = correct(one, text, calls, ended)
        right, stopped = right + ok, stopped + ended
        if not ok and show > 0:
            show -= 1
            asked = asked_text(one)[-150:]
            print(
                f"  wrong ({one.task}): {asked!r} -> {text!r} {calls or ''}, wanted {one.answer!r}"
            )
    return {
        "accuracy": right / len(examples),
        "stopped": stopped / len(examples),
        "n": len(examples),
        "replies": replies,
    }


def differing(mine: dict[str, dict], other: dict[str, dict]) -> tuple[int, int]:
    """Of the questions that both were asked: how many got another answer, and all."""
    pairs = [
        (a, b)
        for task in mine.keys() & other.keys()
        for mode in mine[task]
        for a, b in zip(mine[task][mode]["replies"], other[task][mode]["replies"], strict=True)
    ]
    return sum(a != b for a, b in pairs), len(pairs)


def picture(curve: dict[str, dict[str, dict]], path: Path) -> bool:
    """Needle accuracy over distance; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2))
    for mode, points in curve.items():
        axes.plot(
            [int(d) for d in points],
            [100 * p["accuracy"] for p in points.values()],
            "o-",
            label=mode,
        )
    axes.set(xlabel="tokens between fact and answer", ylabel="correct, %", ylim=(0, 103))
    axes.axhline(90, color="gray", linewidth=0.8, linestyle=":")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--folder", type=Path, default=FOLDER)
    ap.add_argument("--backend", choices=("qwen35", "transformers"), default="qwen35")
    ap.add_argument("--quantize", metavar="T", help="blocks made at load (qwen35 only)")
    ap.add_argument("--dtype", default="auto", help="as of load (qwen35 only)")
    ap.add_argument("--against", type=Path, help="results.json of another run")
    ap.add_argument("--n", type=int, default=100, help="questions per task and mode")
    ap.add_argument(
        "--distance-n", type=int, default=50, help="questions per needle distance and mode"
    )
    ap.add_argument(
        "--level", type=float, default=0.4, help="curriculum level, sets the needle's length"
    )
    ap.add_argument("--seed", type=int, default=2026)
    ap.add_argument("--tasks", nargs="+", default=list(EVALUATED), help="default all")
    ap.add_argument("--show", type=int, default=0, help="wrong answers to print per row")
    ap.add_argument(
        "--out", type=Path, default=Path("."), help="folder for results.json and needle.png"
    )
    args = ap.parse_args()
    renderer, start = Renderer(args.folder), time.monotonic()
    if args.backend == "qwen35":
        backend: Backend = Qwen35(args.folder, dtype=args.dtype, quantize=args.quantize)
    else:
        backend = Transformers(args.folder)
    modes = {"direct": False, "thinking": True}
    tasks: dict[str, dict] = {}
    print("| task | direct | thinking | stopped |\n|---|---:|---:|---:|", flush=True)
    for task in args.tasks:
        row = tasks[task] = {}
        for mode, thinking in modes.items():
            rng = Random(f"{args.seed} {task} {mode}")
            many = [
                example(rng, task, held=True, level=args.level, thinking=thinking)
                for _ in range(args.n)
            ]
            row[mode] = run(backend, many, args.show)
        ended = min(r["stopped"] for r in row.values())
        cells = " | ".join(f"{100 * r['accuracy']:.0f} %" for r in row.values())
        print(f"| {task} | {cells} | {100 * ended:.0f} % |", flush=True)
    curve: dict[str, dict[str, dict]] = {mode: {} for mode in modes}
    print("\n| tokens back | direct | thinking |\n|---:|---:|---:|", flush=True)
    for distance in DISTANCES if args.distance_n else ():
        for mode, thinking in modes.items():
            many = distance_examples(renderer, distance, thinking, args.distance_n, args.seed)
            curve[mode][str(distance)] = run(backend, many, args.show)
        cells = " | ".join(f"{100 * curve[m][str(distance)]['accuracy']:.0f} %" for m in modes)
        print(f"| {distance} | {cells} |", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"backend": args.backend, "seed": args.seed, "tasks": tasks, "needle": curve}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.against:
        other = json.loads(args.against.read_text())
        if other["seed"] != args.seed:
            raise SystemExit(f"{args.against}: seed {other['seed']}, this run has {args.seed}")
        different, asked = differing(tasks, other["tasks"])
        print(f"\n{different} of {asked} answers differ from {args.against}")
    drawn = picture(curve, args.out / "needle.png")
    written = "results.json and needle.png" if drawn else "results.json"
    print(f"\n{time.monotonic() - start:.0f} s; {written} in {args.out}")


if __name__ == "__main__":
    main()
