"""qwen35, llama.cpp and transformers behind one face, each in a process that loads the model once.

    Worker("llama.cpp", path, threads=2, room=600).ask("decode", tokens=32, depth=512)

An engine: about(), what a token costs; prefill_s(tokens, depth), decode_s(tokens, depth) and
batch_s(size, prompt, steps) in seconds. `depth` random tokens are read once, untimed, and kept for
all rounds. All get the same ids, and make logits after a prefill and after each decoded token.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(
    str(Path(__file__).parents[1])
)  # the source tree's package, where none is installed


def random_ids(tokens: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 200_000, tokens).astype(np.int32)


class Qwen35:
    """By the core's own calls, as qwen35/bench.py makes them."""

    def __init__(self, path: str, *, threads: int, room: int) -> None:
        import qwen35

        self.model = qwen35.load(path, threads=threads, context=room, vision=False, progress=False)
        self.timelines: dict[int, Any] = {}

    def about(self) -> dict[str, Any]:
        """What a token costs; the same for all engines on the same file."""
        from qwen35 import bench

        return bench.costs(self.model) | {"kv_dtype": self.model.kv_dtype}

    def at(self, depth: int) -> Any:
        from qwen35.bench import Timeline

        if depth not in self.timelines:
            self.timelines[depth] = Timeline(self.model, depth, self.model.context - depth)
        return self.timelines[depth]

    def prefill_s(self, tokens: int, depth: int) -> float:
        return self.at(depth).prefill_s(tokens)

    def decode_s(self, tokens: int, depth: int) -> float:
        return self.at(depth).decode_s(tokens)

    def batch_s(self, size: int, prompt: int, steps: int) -> float:
        from qwen35 import bench

        return bench.batch_s(self.model, size, prompt=prompt, steps=steps)[1]


class LlamaCpp:
    """By llama.cpp's C functions."""

    def __init__(self, path: str, *, threads: int, room: int) -> None:
        import llama_cpp as ll

        @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        def silent(level: int, text: bytes, data: object) -> None:
            pass

        self.ll, self.silent = ll, silent
        ll.llama_log_set(silent, None)
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.threads, self.room = threads, room
        self.contexts: dict[int, Any] = {}

    def about(self) -> dict[str, Any]:
        return {}

    def context(self, tokens: int, sequences: int, *, unified: bool) -> Any:
        params = self.ll.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = tokens, sequences, unified
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_threads = params.n_threads_batch = self.threads
        found = self.ll.llama_init_from_model(self.model, params)
        if not found:
            raise SystemExit(f"llama.cpp has no context of {tokens} tokens")
        return found

    def append(
        self, context: Any, ids: NDArray[np.int32], start: int, sequences: list[int]
    ) -> None:
        """ids [T] to one sequence, logits after the last; or one id to each of several."""
        ll, many = self.ll, len(sequences) > 1
        for first in range(0, len(ids), 2048):
            part = ids[first : first + 2048]
            batch = ll.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.n_seq_id[i] = int(token), 1
                batch.pos[i] = start if many else start + first + i
                batch.seq_id[i][0] = sequences[i if many else 0]
                batch.logits[i] = many or first + i == len(ids) - 1
            if ll.llama_decode(context, batch):
                raise SystemExit("llama_decode failed")
            ll.llama_synchronize(context)
            ll.llama_batch_free(batch)

    def at(self, depth: int) -> tuple[Any, int]:
        """A context, and a sequence in it that holds `depth` tokens: a copy of one kept there."""
        ll = self.ll
        if depth not in self.contexts:
            self.contexts[depth] = self.context(self.room, 2, unified=True)
            if depth:
                self.append(self.contexts[depth], random_ids(depth, 1), 0, [0])
        context = self.contexts[depth]
        memory = ll.llama_get_memory(context)
        ll.llama_memory_seq_rm(memory, 1, -1, -1)
        if depth:
            ll.llama_memory_seq_cp(memory, 0, 1, -1, -1)
        return context, 1

    def prefill_s(self, tokens: int, depth: int) -> float:
        context, sequence = self.at(depth)
        ids = random_ids(tokens)
        start = time.perf_counter()
        self.append(context, ids, depth, [sequence])
        return time.perf_counter() - start

    def decode_s(self, tokens: int, depth: int) -> float:
        context, sequence = self.at(depth)
        ids = random_ids(tokens + 1)
        self.append(context, ids[:1], depth, [sequence])
        start = time.perf_counter()
        for i in range(1, tokens + 1):
            self.append(context, ids[i : i + 1], depth + i, [sequence])
        return time.perf_counter() - start

    def batch_s(self, size: int, prompt: int, steps: int) -> float:
        context = self.context(size * (prompt + steps + 8), size, unified=False)
        ids = random_ids(size * prompt).reshape(size, prompt)
        for i in range(size):
            self.append(context, ids[i], 0, [i])
        start = time.perf_counter()
        for step in range(steps):
            self.append(context, ids[:, step % prompt], prompt + step, list(range(size)))
        seconds = time.perf_counter() - start
        self.ll.llama_free(context)
        return seconds


class Transformers:
    """In the checkpoint's own type; what lies before is read anew: its cache cannot go back."""

    def __init__(self, path: str, *, threads: int, room: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()

    def about(self) -> dict[str, Any]:
        return {}

    def append(self, ids: NDArray[np.int32], cache: Any = None) -> Any:
        """ids [B, T] -> the cache after them."""
        tokens = self.torch.from_numpy(ids.astype(np.int64))
        how = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(tokens, **how).past_key_values

    def timed(self, before: NDArray[np.int32], then: list[NDArray[np.int32]]) -> float:
        """Seconds of reading `then`, one after the other, behind `before`, all [B, T]."""
        cache = self.append(before) if before.size else None
        start = time.perf_counter()
        for ids in then:
            cache = self.append(ids, cache)
        return time.perf_counter() - start

    def prefill_s(self, tokens: int, depth: int) -> float:
        return self.timed(random_ids(depth, 1)[None], [random_ids(tokens)[None]])

    def decode_s(self, tokens: int, depth: int) -> float:
        ids = random_ids(tokens)
        return self.timed(
            random_ids(max(depth, 1), 1)[None], [ids[i : i + 1][None] for i in range(tokens)]
        )

    def batch_s(self, size: int, prompt: int, steps: int) -> float:
        ids = random_ids(size * prompt).reshape(size, prompt)
        return self.timed(ids, [ids[:, i % prompt, None] for i in range(steps)])


ENGINES: dict[str, Callable[..., Any]] = {
    "qwen35": Qwen35,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
}


class Worker:
    """An engine in a process of its own, asked by lines of JSON; the others wait meanwhile."""

    def __init__(self, name: str, path: str, **how: int) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, path, json.dumps(how)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self.ask("about")

    def ask(self, what: str, **how: int) -> Any:
        """What a method of the engine returns."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"what": what, "how": how}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def main() -> None:
    name, path, how = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what an engine prints is no answer
    engine = ENGINES[name](path, **json.loads(how))
    engine.prefill_s(64, 0)
    engine.decode_s(2, 0)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(engine, asked["what"])(**asked["how"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
