#!/usr/bin/env python3
"""Train tiny on a CPU: seeded, resumable, by the clock.

    python examples/tiny/train.py --work /tmp/tiny --minutes 100            # start
    python examples/tiny/train.py --work /tmp/tiny --minutes 100 --resume   # go on

Fresh questions every step, their lengths and the mixture of tasks following a curriculum: the
needle's text grows with progress, and tasks whose held-out accuracy lags are drawn more often. The
learning rate falls to zero over --minutes; then the MTP layer is trained for --mtp-minutes on the
finished, frozen trunk. SIGTERM and SIGINT save before exit; the checkpoint with optimizer state is
WORK/checkpoint.pt, the result FOLDER/model.safetensors.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from model import (
    TinyModel,
    init_vision,
    init_weights,
    load_config,
    save_weights,
)
from muon import Muon
from render import Renderer
from tasks import EVALUATED, example

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"
MIXTURE = {
    "add": 0.44,
    "compare": 0.30,
    "needle": 0.22,
    "sort": 0.11,
    "reverse": 0.07,
    "tool": 0.13,
    "tool_result": 0.04,
    "chat": 0.03,
    "copy": 0.01,
}


def mixture(accuracy: dict[str, float]) -> dict[tuple[str, bool], float]:
    """Weights of (task, thinking): the lower its held-out accuracy, the larger its share."""
    out = {}
    for task, share in MIXTURE.items():
        for thinking in (False, True):
            reached = accuracy.get(task + ("/think" if thinking else ""), 0.65)
            out[task, thinking] = share * max(0.25, 1.15 - reached)
    return out


class Batches:
    """An endless stream of right-padded batches of similar lengths."""

    def __init__(self, renderer: Renderer, seed: int, tokens: int):
        self.renderer, self.rng, self.tokens = renderer, Random(seed), tokens
        self.queue: list[list[tuple]] = []

    def next(self, level: float, weights: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids [B, T], weight of each position as a target [B, T])."""
        if not self.queue:
            self.fill(level, weights)
        return collate(self.queue.pop())

    def fill(self, level: float, weights: dict) -> None:
        names, total, pool = list(weights), 0, []
        while total < 12 * self.tokens:
            task, thinking = self.rng.choices(names, list(weights.values()))[0]
            one = example(self.rng, task, held=False, level=level, thinking=thinking)
            ids, targets, _ = self.renderer.tokens(one)
            pool.append((ids, targets))
            total += len(ids)
        pool.sort(key=lambda x: len(x[0]) * self.rng.uniform(0.95, 1.05))
        batch: list[tuple] = []
        for item in pool:
            longest = max([len(item[0]), *(len(x[0]) for x in batch)])
            if batch and longest * (len(batch) + 1) > self.tokens:
                self.queue.append(batch)
                batch = []
            batch.append(item)
        self.queue.append(batch)
        self.rng.shuffle(self.queue)


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad (ids, weights) pairs."""
    T = max(len(ids) for ids, _ in items)
    ids = torch.zeros(len(items), T, dtype=torch.long)
    weights = torch.zeros(len(items), T)
    for i, (a, b) in enumerate(items):
        ids[i, : len(a)] = torch.tensor(a)
        weights[i, : len(b)] = torch.tensor(b)
    return ids, weights


def loss_of(model: TinyModel, ids: torch.Tensor, weights: torch.Tensor, mtp: bool) -> torch.Tensor:
    """Mean cross entropy over supervised tokens; a batch with few of them counts for less."""
    if mtp:
        with torch.no_grad():
            hidden = model.hidden(ids)
        hidden, shift = model.mtp_hidden(ids, hidden), 2
    else:
        hidden, shift = model.hidden(ids), 1
    at = weights[:, shift:] > 0
    logits = model.logits(hidden[:, : ids.shape[1] - shift][at])
    loss = F.cross_entropy(logits, ids[:, shift:][at], reduction="none")
    return loss.sum() / max(200, at.sum())


@torch.no_grad()
def accuracy(
    model: TinyModel, renderer: Renderer, seed: int, n: int, level: float
) -> dict[str, float]:
    """Share of held-out questions whose whole greedy reply is exact, by 'task' and 'task/think'."""
    out = {}
    for task in EVALUATED:
        rng = Random(seed)
        for thinking in (False, True):
            right = 0
            for _ in range(0, n, 16):
                rows = []
                for _ in range(16):
                    one = example(rng, task, held=True, level=level, thinking=thinking)
                    rows.append(renderer.tokens(one))
                ids, _ = collate([r[:2] for r in rows])
                best = model.logits(model.hidden(ids)).argmax(-1)
                for i, (row, _, start) in enumerate(rows):
                    right += best[i, start - 1 : len(row) - 1].tolist() == row[start:]
            out[task + ("/think" if thinking else "")] = right / n
    return out


def optimizers(model: TinyModel, lr: float, mtp: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embedding, convolutions, gates and vectors."""
    named = {n: p for n, p in model.w.items() if n.startswith("mtp.") == mtp}
    small = ("embed_tokens", "conv1d", "in_proj_a", "in_proj_b")
    matrices = [p for n, p in named.items() if p.ndim == 2 and not any(s in n for s in small)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        Muon(matrices, lr, 0.1),
        torch.optim.AdamW(rest, lr=lr * 0.6, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Run:
    """The state of a training run and its checkpoint."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.seconds, self.step, self.mtp = args, 0.0, 0, False
        self.folder, self.path = args.folder, args.work / "checkpoint.pt"
        self.cfg = load_config(self.folder)
        self.renderer = Renderer(self.folder)
        self.accuracy: dict[str, float] = {}
        held = torch.load(self.path, weights_only=False) if args.resume else None
        weights = held["weights"] if held else init_weights(self.cfg, args.seed)
        self.vision = held["vision"] if held else init_vision(self.cfg, args.seed)
        self.model = TinyModel(self.cfg, weights)
        self.batches = Batches(self.renderer, args.seed, args.tokens)
        if held:
            self.seconds, self.step, self.mtp = held["seconds"], held["step"], held["mtp"]
            self.accuracy = held["accuracy"]
            self.batches.rng.setstate(held["rng"])
        self.optimizers = optimizers(self.model, args.lr, self.mtp)
        if held:
            for o, state in zip(self.optimizers, held["optimizers"], strict=True):
                o.load_state_dict(state)

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "weights": {n: p.detach() for n, p in self.model.w.items()},
                "vision": self.vision,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "rng": self.batches.rng.getstate(),
                "seconds": self.seconds,
                "step": self.step,
                "mtp": self.mtp,
                "accuracy": self.accuracy,
            },
            part,
        )
        os.replace(part, self.path)

    def publish(self) -> None:
        save_weights({**self.model.w, **self.vision}, self.folder)

    def level(self) -> float:
        """Progress of the trunk, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.args.minutes))

    def rate(self) -> float:
        """Learning rate: a short warm-up, flat, then linearly to zero over the last 60 %; the same
        for MTP."""
        t = self.level()
        if self.mtp:
            t = (self.seconds / 60 - self.args.minutes) / max(1e-6, self.args.mtp_minutes)
        return self.args.lr * min(1.0, t / 0.02 + 0.02, max(0.0, (1 - t) / 0.6))

    def one_step(self) -> tuple[float, int]:
        """(loss, tokens) of one optimizer step."""
        ids, weights = self.batches.next(self.level(), mixture(self.accuracy))
        loss = loss_of(self.model, ids, weights, self.mtp)
        for o in self.optimizers:
            o.zero_grad(set_to_none=True)
        loss.backward()
        params = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        rate = self.rate()
        for o, scale in zip(self.optimizers, (1.0, 0.6), strict=True):
            for group in o.param_groups:
                group["lr"] = rate * scale
            o.step()
        return loss.item(), ids.numel()


def train(run: Run) -> None:
    """Steps until the time is over; logs, evaluates, saves and publishes on the way."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stop.append(n))
    args, seen, total, since = run.args, 0, 0.0, time.monotonic()
    marks = {"eval": run.seconds, "publish": run.seconds}
    trunk_end = 60 * args.minutes
    while not stop and run.seconds < trunk_end + 60 * args.mtp_minutes:
        if not run.mtp and run.seconds >= trunk_end:
            run.mtp, run.optimizers = True, optimizers(run.model, args.lr, True)
        start = time.monotonic()
        loss, tokens = run.one_step()
        run.seconds += min(20.0, time.monotonic() - start)  # a suspended process does not age
        run.step, seen, total = run.step + 1, seen + tokens, total + loss
        if run.step % 50 == 0:
            speed = seen / (time.monotonic() - since)
            print(
                f"{time.strftime('%H:%M:%S')} step {run.step} {'mtp' if run.mtp else 'trunk'} "
                f"{run.seconds / 60:.1f} min  loss {total / 50:.4f}  lr {run.rate():.1e}  "
                f"{speed:.0f} tokens/s",
                flush=True,
            )
            seen, total, since = 0, 0.0, time.monotonic()
        if run.seconds - marks["eval"] > 60 * args.eval_minutes:
            marks["eval"] = run.seconds
            run.accuracy = accuracy(run.model, run.renderer, 11, 32, min(run.level(), 0.5))
            print("  ".join(f"{t} {a:.2f}" for t, a in run.accuracy.items()), flush=True)
            run.save()
        if run.seconds - marks["publish"] > 60 * args.publish_minutes:
            marks["publish"] = run.seconds
            run.publish()
    run.save()
    run.publish()
    print("stopped" if stop else "finished", flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--folder", type=Path, default=FOLDER, help="config in, weights out")
    ap.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoint.pt and train.pid"
    )
    ap.add_argument("--minutes", type=float, default=90, help="time for the trunk")
    ap.add_argument("--mtp-minutes", type=float, default=10, help="time for the MTP layer after it")
    ap.add_argument("--resume", action="store_true", help="go on from WORK/checkpoint.pt")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tokens", type=int, default=3072, help="tokens a step")
    ap.add_argument("--lr", type=float, default=5e-3, help="peak learning rate")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument(
        "--eval-minutes", type=float, default=5, help="between evaluations and checkpoints"
    )
    ap.add_argument("--publish-minutes", type=float, default=15, help="between writes to FOLDER")
    args = ap.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "train.pid").write_text(f"{os.getpid()}\n")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    run = Run(args)
    size = sum(p.numel() for p in run.model.w.values())
    print(f"{size / 1e6:.2f} M parameters, from step {run.step}", flush=True)
    train(run)


if __name__ == "__main__":
    main()
