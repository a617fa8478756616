"""Measure a model on a text of yours.

examples:
  qwen35 eval fidelity --quantize q8_0,q4_k_m --reference tiny --text notes.txt
  qwen35 eval fidelity --help
"""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .cli import add_traceback

FIDELITY = """How far models, quantized mostly, are from a reference: perplexity, KL, agreement,
size, speed. The text is cut into windows, each read from an empty session, and the second half of
each is scored, as llama.cpp's perplexity does."""
EXAMPLES = """examples:
  qwen35 eval fidelity 4B-Q4_K_M.gguf 4B-Q8_0.gguf --reference Qwen3.5-4B --text notes.txt
  qwen35 eval fidelity --quantize q8_0,q4_k_m --reference Qwen3.5-0.8B --text notes.txt --layers
  qwen35 eval fidelity 2B-Q4_K_M.gguf 0.8B-Q8_0.gguf --reference Qwen3.5-2B --text notes.txt \\
      --memory 2GB

With models of several sizes perplexity decides what to choose, else KL to the reference."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 eval` and what it can measure."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    formatter = argparse.RawDescriptionHelpFormatter
    fidelity = kinds.add_parser(
        "fidelity",
        help="compare models with a reference",
        description=FIDELITY,
        epilog=EXAMPLES,
        formatter_class=formatter,
    )
    fidelity.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="'tiny', a folder, a GGUF file or a hub id; with --quantize by default the reference",
    )
    fidelity.add_argument(
        "--reference", required=True, metavar="MODEL", help="the model as it was released (bf16)"
    )
    fidelity.add_argument("--text", required=True, type=Path, metavar="FILE", help="UTF-8 text")
    fidelity.add_argument(
        "--special", action="store_true", help="read <|im_start|> and the like as special tokens"
    )
    fidelity.add_argument(
        "--context", type=int, default=512, metavar="N", help="tokens of a window (512)"
    )
    fidelity.add_argument("--tokens", type=int, metavar="N", help="tokens of the text at most")
    fidelity.add_argument(
        "--quantize", metavar="TYPES", help="measure each MODEL in these types, as q8_0,q4_k_m"
    )
    fidelity.add_argument(
        "--memory", type=_bytes, metavar="SIZE", help="say what to choose for it (4GB, 900MiB)"
    )
    fidelity.add_argument(
        "--layers", action="store_true", help="print the errors of weights by layer and matrix too"
    )
    fidelity.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    fidelity.add_argument("--plot", type=Path, metavar="FILE", help="draw KL against size (PNG)")
    fidelity.add_argument("--threads", type=int, help="threads that compute")
    fidelity.add_argument("--offline", action="store_true", help="use the hub's cache alone")
    add_traceback(fidelity)
    fidelity.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the files asked for, choose."""
    from . import fidelity
    from .fidelity_report import figure_class, size_text

    text = _read(args.text)
    _check_outputs(args)
    if args.plot is not None:
        figure_class()  # says now what is missing, not after an hour
    with ExitStack() as stack:
        reference, models = _models(args, stack)
        results = fidelity.measure(
            models,
            reference,
            text,
            context=args.context,
            tokens=args.tokens,
            special=args.special,
        )
        layers = None
        if args.layers or args.json is not None:
            alike = [result.name for result in results if result.same_size]
            found = {name: fidelity.layer_errors(models[name], reference) for name in alike}
            layers = {name: errors for name, errors in found.items() if errors.matrices}
    print(fidelity.table(results))
    if args.layers:
        for name, errors in (layers or {}).items():
            print(f"\n{name}\n{errors}")
    if args.json is not None:
        args.json.write_text(fidelity.to_json(results, layers=layers) + "\n", encoding="utf-8")
    if args.plot is not None:
        fidelity.plot(results, args.plot)
    if args.memory is not None:
        best = fidelity.choose(results, args.memory)
        takes, budget = size_text(best.memory_bytes), size_text(args.memory)
        print(f"for {budget} choose {best.name}: {takes} with a session of {best.context:,} tokens")
    return 0


def _models(args: argparse.Namespace, stack: ExitStack) -> tuple[Any, dict[str, Any]]:
    """The reference, and by name: itself, then every MODEL in every type."""
    from .loading import load
    from .quantize import check_recipe

    words = [] if args.quantize is None else args.quantize.split(",")
    recipes: list[Any] = [check_recipe(word.strip()) for word in words] or [None]
    sources = args.models or ([args.reference] if words else [])
    if not sources:
        raise ValueError("no MODEL given: name one, or types of the reference with --quantize")
    if args.context < 3:
        raise ValueError(f"--context {args.context}: expected at least 3")

    def opened(source: str, recipe: str | None) -> Any:
        model = load(
            source,
            quantize=recipe,
            context=args.context,
            threads=args.threads,
            vision=False,
            mtp=False,
            local_files_only=args.offline,
        )
        return stack.enter_context(model)

    reference = opened(args.reference, None)
    models = {reference.name: reference}
    for source in sources:
        for recipe in recipes:
            if recipe is None and source == args.reference:
                continue
            model = opened(source, recipe)
            suffix = f" {recipe}" if recipe else ""
            name = model.name + suffix
            models[source + suffix if name in models else name] = model
    return reference, models


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def _check_outputs(args: argparse.Namespace) -> None:
    """What would fail after the work is refused before it."""
    for path in (args.json, args.plot):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ValueError(f"{path}: expected a file in a folder that exists")


def _bytes(text: str) -> int:
    """'4GB' -> 4000000000, '4GiB' -> 4294967296."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 4GB or 900MiB")
    return int(float(found[1]) * UNITS[(found[2] or "").lower()])
