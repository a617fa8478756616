"""Answer one prompt. The text goes to stdout as it comes; '-' reads the prompt from stdin.

examples:
  qwen35 run "What is 23 + 45?"
  qwen35 run --no-think --temperature 0 --json "Sort: pear apple fig"
  git diff | qwen35 run --model Qwen/Qwen3.5-2B --system "Review this change." -
  qwen35 run --raw --max-tokens 40 "Once upon a time"
  qwen35 run "What is in the picture?" --image photo.jpg
  qwen35 run "What happens?" --video clip.mp4 --sample-fps 1
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .cli import Screen, add_model_arguments, add_sampling_arguments, load_model, sampling_fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 run`."""
    parser.add_argument("prompt", metavar="PROMPT", help="what to answer; - reads stdin")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="show an image (repeatable)"
    )
    parser.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="show a video (repeatable)"
    )
    parser.add_argument(
        "--sample-fps", type=float, metavar="X", help="frames a second taken of videos (2)"
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="of an image, or all frames of a video"
    )
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of function schemas")
    parser.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stream the answer; 130 with what there was when interrupted."""
    _check_raw(args)
    prompt = _read_prompt(args.prompt)
    tools = _read_tools(args.tools)
    with load_model(args) as model:
        stream = _ask(model, args, prompt, tools)
        screen = Screen(show_thinking=args.show_thinking)
        status = 0
        try:
            for token in stream:
                if not args.json:
                    screen.show(token)
        except KeyboardInterrupt:
            status = 130
        result = stream.result()
        screen.end()
        if args.json:
            print(json.dumps(as_json(result, model), ensure_ascii=False))
        else:
            for call in result.tool_calls:
                line = {"name": call.name, "arguments": call.arguments}
                print(json.dumps(line, ensure_ascii=False))
    return status


def _ask(model: Any, args: argparse.Namespace, prompt: str, tools: Any) -> Any:
    fields = sampling_fields(args)
    images, videos = _media(args)
    if args.raw:
        return model.generate(prompt, images=images, videos=videos, **fields)
    media = [{"type": "image", **part} for part in images]
    media += [{"type": "video", **part} for part in videos]
    content = [*media, {"type": "text", "text": prompt}] if media else prompt
    messages = [{"role": "user", "content": content}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return model.chat(
        messages,
        tools=tools,
        enable_thinking=args.think,
        thinking_budget=args.thinking_budget,
        **fields,
    )


def _media(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images and videos with their options."""
    if args.sample_fps is not None and not args.video:
        raise ValueError("--sample-fps goes with --video")
    if args.max_pixels is not None and not (args.image or args.video):
        raise ValueError("--max-pixels goes with --image or --video")
    size = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}
    rate = {} if args.sample_fps is None else {"sample_fps": args.sample_fps}
    images = [{"image": path, **size} for path in args.image]
    return images, [{"video": path, **size, **rate} for path in args.video]


def _check_raw(args: argparse.Namespace) -> None:
    """ValueError for a flag that means nothing without the chat template."""
    chat_only = {
        "--system": args.system,
        "--tools": args.tools,
        "--think": args.think,
        "--thinking-budget": args.thinking_budget,
    }
    for name, value in chat_only.items():
        if args.raw and value is not None:
            raise ValueError(f"{name} goes with the chat template; leave it or --raw out")


def _read_prompt(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: byte {error.start} is not UTF-8") from None


def _read_tools(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8: {error}") from None
    return tools if isinstance(tools, list) else [tools]


def as_json(result: Any, model: Any) -> dict[str, Any]:
    """A Generation as plain values."""
    usage, timings = result.usage, result.timings
    return {
        "model": model.name,
        "text": result.text,
        "reasoning": result.reasoning,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in result.tool_calls
        ],
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
        "timings": {
            "ttft_s": round(timings.ttft_s, 4),
            "prefill_tokens_per_s": round(timings.prefill_tps, 1),
            "decode_tokens_per_s": round(timings.decode_tps, 1),
        },
    }
