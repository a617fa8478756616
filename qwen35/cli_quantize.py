"""Make a GGUF file of a model: smaller, and faster to load; llama.cpp runs it too.

types, smallest to largest:
  q2_k q3_k_s q3_k_m iq4_xs iq4_nl q4_0 q4_k_s q4_k_m q4_1 q5_0 q5_k_s q5_k_m q5_1 q6_k q8_0
  keep: as stored, only the format changes

examples:
  qwen35 quantize Qwen/Qwen3.5-4B qwen3.5-4b-q4_k_m.gguf
  qwen35 quantize ~/models/Qwen3.5-0.8B small.gguf --type q8_0 --no-vision
  qwen35 quantize full.gguf small.gguf --type q4_k_m --imatrix measured.gguf
  qwen35 quantize Qwen/Qwen3.5-0.8B better.gguf --type q4_k_m --calibrate notes.txt

--calibrate reads a text like those the model is for: the bytes of the type go to the matrices that
count most on it, and the errors of each matrix are made to cancel out. It takes the time of reading
the text some times over; llama.cpp runs the file as any other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli import add_traceback

MAX_TEXT = 1 << 26  # bytes of a calibration text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 quantize`."""
    parser.add_argument("source", metavar="SRC", help="'tiny', a folder, a GGUF file, or a hub id")
    parser.add_argument("target", metavar="DST", type=Path, help="the .gguf file to write")
    parser.add_argument("--type", default="q4_k_m", metavar="T", help="see above (default q4_k_m)")
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="what llama.cpp measured")
    parser.add_argument(
        "--calibrate", type=Path, metavar="TEXT", help="fit to this UTF-8 text; not with --imatrix"
    )
    parser.add_argument(
        "--special", action="store_true", help="TEXT spells out special tokens, <|im_start|> ..."
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="of TEXT that are read at most (16384)"
    )
    parser.add_argument("--no-vision", action="store_true", help="write no mmproj file beside DST")
    parser.add_argument("--no-mtp", action="store_true", help="leave the draft layer out")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that encode")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--offline", action="store_true", help="use the hub's cache alone")
    add_traceback(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file, and say what became of the size."""
    from .calibrate import MAX_TOKENS
    from .checkpoint import open_checkpoint
    from .gguf_export import check_target_recipe, export
    from .gguf_write import refuse_existing
    from .json_file import read_text
    from .load_progress import reporting
    from .machine import default_threads

    recipe = check_target_recipe(args.type)
    target = args.target.expanduser()
    refuse_existing(target, args.overwrite)  # before anything is downloaded
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected at least 1")
    if args.calibrate is not None and args.imatrix is not None:
        raise ValueError("--imatrix and --calibrate: expected one of them, not both")
    if args.calibrate is None and (args.special or args.tokens is not None):
        raise ValueError("--special and --tokens: belong to --calibrate TEXT")
    text = (
        None if args.calibrate is None else read_text(args.calibrate.expanduser(), limit=MAX_TEXT)
    )
    options = {"revision": args.revision, "local_files_only": args.offline}
    checkpoint = open_checkpoint(args.source, vision=not args.no_vision, **options)
    try:
        with reporting(None) as report:
            done = export(
                checkpoint,
                target,
                recipe,
                mtp=not args.no_mtp,
                vision=not args.no_vision,
                imatrix=args.imatrix,
                calibrate=text,
                special=args.special,
                tokens=MAX_TOKENS if args.tokens is None else args.tokens,
                overwrite=args.overwrite,
                threads=args.threads or default_threads(),
                report=report,
            )
    finally:
        checkpoint.close()
    before, after = (f"{size / 1e6:,.1f} MB" for size in (done.bytes_before, done.bytes_after))
    print(f"{done.path}: {before} -> {after}, {done.bits_per_weight:.2f} bits per weight")
    if done.vision_path is not None:
        print(f"{done.vision_path}: vision, {done.vision_path.stat().st_size / 1e6:,.1f} MB")
    return 0
