"""Which quantization for which memory: tiny in five types against its released weights, on held-out
questions with their answers (its perplexity is high: questions it was never taught to predict).
python examples/fidelity.py [MEGABYTES]
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random

import qwen35
from qwen35 import fidelity

sys.path.append(str(Path(__file__).parent / "tiny"))
from render import Renderer  # noqa: E402
from tasks import READ, example  # noqa: E402  (what tiny was trained for; no pictures)

RECIPES = ("q8_0", "q6_k", "q4_k_m", "q4_0")
QUESTIONS, CONTEXT = 2, 128  # a task and mode; tokens of a window


def conversations(model: qwen35.Model) -> list[int]:
    """Questions that training never saw, and their right answers, through the chat template."""
    renderer, texts = Renderer(Path(qwen35.__file__).parent / "tiny"), []
    for task in READ:
        for thinking in (False, True):
            rng = Random(f"fidelity {task} {thinking}")
            for _ in range(QUESTIONS):
                one = example(rng, task, held=True, level=0.2, thinking=thinking)
                texts.append("".join(renderer.text(one)) + "\n")
    Random(1).shuffle(texts)
    return model.tokenize("".join(texts), special=True)


budget = int(float(sys.argv[1] if len(sys.argv) > 1 else "7.5") * 1e6)
with ExitStack() as stack:
    reference = stack.enter_context(qwen35.load("tiny", context=4096, threads=1))
    models = {"bf16": reference}
    for recipe in RECIPES:
        models[recipe] = stack.enter_context(qwen35.load("tiny", quantize=recipe, threads=1))
    results = fidelity.measure(models, reference, conversations(reference), context=CONTEXT)
    print(fidelity.table(results))
    best = fidelity.choose(results, budget)
    print(
        f"\nfor {budget / 1e6:g} MB: {best.name}, {best.memory_bytes / 1e6:.1f} MB with a session"
    )
    if best.name != "bf16":
        print(f"\nits weights\n{fidelity.layer_errors(models[best.name], reference)}")
