"""Which quantization for which memory: tiny in five types and calibrated, against its released
weights, on held-out questions with their answers (its perplexity is high: questions it was never
taught to predict). The calibrated file was made from other questions; it takes a minute.
python examples/fidelity.py [MEGABYTES ...]
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import qwen35
from qwen35 import fidelity
from qwen35.checkpoint import open_checkpoint
from qwen35.gguf_export import export

sys.path.append(str(Path(__file__).parent / "tiny"))
from conversations import conversations  # noqa: E402

RECIPES = ("q8_0", "q6_k", "q4_k_m", "q4_0")
CALIBRATED = "q4_k_m calibrated"
CONTEXT = 128  # tokens of a window
FOLDER = Path(qwen35.__file__).parent / "tiny"


def calibrated(path: Path) -> Path:
    """q4_k_m, its bytes spent and its errors made for questions like those in training: on the
    command line, qwen35 quantize tiny PATH --type q4_k_m --calibrate TEXT --special.
    """
    text = conversations(FOLDER, "calibrate", 3, held=False)
    checkpoint = open_checkpoint("tiny")
    try:
        export(checkpoint, path, "q4_k_m", mtp=False, vision=False, calibrate=text, special=True)
    finally:
        checkpoint.close()
    return path


budgets = [int(float(word) * 1e6) for word in sys.argv[1:]] or [6_000_000, 7_500_000, 10**9]
with ExitStack() as stack:
    reference = stack.enter_context(qwen35.load("tiny", context=4096, threads=1))
    models = {"bf16": reference}
    for recipe in RECIPES:
        models[recipe] = stack.enter_context(qwen35.load("tiny", quantize=recipe, threads=1))
    home = Path(stack.enter_context(TemporaryDirectory()))
    made = qwen35.load(calibrated(home / "calibrated.gguf"), threads=1)
    models[CALIBRATED] = stack.enter_context(made)
    text = reference.tokenize(conversations(FOLDER, "fidelity", 2, held=True), special=True)
    results = fidelity.measure(models, reference, text, context=CONTEXT)
    print(fidelity.table(results))
    print()
    for budget in budgets:
        try:
            best = fidelity.choose(results, budget)
        except ValueError as error:
            print(error)
            continue
        size = f"{best.memory_bytes / 1e6:.1f} MB with a session"
        print(f"for {budget / 1e6:g} MB: {best.name}, {size}, KL {best.kl:.1e}")
        if best.name not in ("bf16", CALIBRATED):
            print(f"\nits weights\n{fidelity.layer_errors(models[best.name], reference)}")
