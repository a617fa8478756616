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

import numpy as np
import torch
import torch.nn.functional as F
from batches import Batch, Batches, collate, mixture
from model import TinyModel, init_weights, load_config, load_weights, save_weights
from muon import Muon
from patches import Frame
from probes import Probes
from render import Renderer
from tasks import EVALUATED, example
from tower import init_vision

FOLDER = Path(__file__).resolve().parents[2] / "qwen35" / "tiny"


def next_token_loss(
    model: TinyModel, hidden: torch.Tensor, batch: Batch, shift: int = 1
) -> torch.Tensor:
    """Mean cross entropy over supervised tokens, `shift` positions after the hidden state; a batch
    with few of them counts for less."""
    ids, at = batch.ids, batch.weights[:, shift:] > 0
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
                batch = collate(rows, renderer.pads)
                best = model.logits(model.hidden(batch.ids, batch.sight)).argmax(-1)
                for i, row in enumerate(rows):
                    ids, start = row.ids, row.start
                    right += best[i, start - 1 : len(ids) - 1].tolist() == ids[start:]
            out[task + ("/think" if thinking else "")] = right / n
    return out


def optimizers(
    named: dict[str, torch.nn.Parameter], lr: float
) -> list[tuple[torch.optim.Optimizer, float]]:
    """(optimizer, peak learning rate): Muon for the matrices, AdamW for embeddings, text
    convolutions, gates and vectors."""
    small = ("embed_tokens", "pos_embed", "conv1d", "in_proj_a", "in_proj_b", "probe")
    matrices = [p for n, p in named.items() if p.ndim > 1 and not any(s in n for s in small)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        (Muon(matrices, lr, 0.1), lr),
        (torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0), lr * 0.6),
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
        weights = weights if held else weights | init_vision(self.cfg, args.seed)
        if args.start and not held:
            known = load_weights(args.start)
            weights |= {n: x for n, x in known.items() if x.shape == weights[n].shape}
        self.model = TinyModel(self.cfg, weights)
        self.probes = Probes(self.cfg["text_config"]["hidden_size"])
        self.batches = Batches(self.renderer, args.seed, args.tokens)
        if held:
            self.seconds, self.step, self.mtp = held["seconds"], held["step"], held["mtp"]
            self.accuracy = held["accuracy"]
            self.batches.rng.setstate(held["rng"])
            self.probes.load_state_dict(held["probes"])
        self.optimizers = self.make_optimizers()
        if held:
            for (o, _), state in zip(self.optimizers, held["optimizers"], strict=True):
                o.load_state_dict(state)

    def make_optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Those of the MTP layer, or of trunk and tower."""
        named = self.model.w
        if self.mtp:
            return optimizers({n: p for n, p in named.items() if "mtp." in n}, self.args.lr)
        seeing = {n: p for n, p in named.items() if ".visual." in n}
        seeing |= {"probe." + n: p for n, p in self.probes.named_parameters()}
        text = {n: p for n, p in named.items() if n not in seeing and "mtp." not in n}
        return optimizers(text, self.args.lr) + optimizers(seeing, self.args.tower_lr)

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "weights": {n: p.detach() for n, p in self.model.w.items()},
                "probes": self.probes.state_dict(),
                "optimizers": [o.state_dict() for o, _ in self.optimizers],
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
        save_weights(self.model.w, self.folder)

    def level(self) -> float:
        """Progress of trunk and tower together, 0 to 1; negative while the tower learns alone."""
        alone = self.args.tower_minutes
        return min(1.0, (self.seconds / 60 - alone) / (self.args.minutes - alone))

    def rate(self) -> float:
        """Share of the peak learning rates: a short warm-up, flat, then linearly to zero over the
        last 60 %; so for the tower alone, for trunk and tower together, and for MTP."""
        t = self.level()
        if t < 0:
            t = self.seconds / 60 / self.args.tower_minutes
        elif self.mtp:
            t = (self.seconds / 60 - self.args.minutes) / max(1e-6, self.args.mtp_minutes)
        return min(1.0, t / 0.02 + 0.02, max(0.0, (1 - t) / 0.6))

    def one_step(self) -> tuple[float, float, int]:
        """(loss, the probes' loss, tokens) of one optimizer step."""
        if alone := self.level() < 0:
            frames = self.batches.extra(self.args.tower_batch)
            loss, tokens = torch.zeros(()), sum(f.tokens for f in frames)
            extra = self.probes.seen(self.see(frames), frames)
        else:
            loss, extra, tokens = self.joint_loss()
        for o, _ in self.optimizers:
            o.zero_grad(set_to_none=True)
        (loss + 0.5 * extra).backward()
        params = [p for o, _ in self.optimizers for g in o.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], 1.0)
        rate = self.rate()
        for i, (o, peak) in enumerate(self.optimizers):
            calm = self.args.tower_calm if i >= 2 and not alone else 1.0
            for group in o.param_groups:
                group["lr"] = rate * peak * calm
            if any(p.grad is not None for p in o.param_groups[0]["params"]):
                o.step()
        return loss.item(), extra.item(), tokens

    def joint_loss(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(loss, the probes' loss, tokens) of trunk and tower on one batch, or of the MTP layer."""
        level = 1 - (1 - self.level()) * (1 - self.args.start_level)
        batch = self.batches.next(level, mixture(self.accuracy))
        model, ids = self.model, batch.ids
        if self.mtp:
            with torch.no_grad():
                hidden = model.hidden(ids, batch.sight)
            hidden = model.mtp_hidden(ids, hidden, batch.sight)
            return next_token_loss(model, hidden, batch, 2), torch.zeros(()), ids.numel()
        frames = batch.frames + self.batches.extra(self.args.extra)
        features = self.see(frames)
        seen = features[: sum(f.tokens for f in batch.frames)]
        extra = self.probes.seen(features, frames)
        hidden, early = model.trunk(ids, batch.sight, seen)
        if batch.mentions:
            extra = extra + self.probes.named(early.flatten(0, 1), batch.mentions)
        return next_token_loss(model, hidden, batch), extra, ids.numel()

    def see(self, frames: list[Frame]) -> torch.Tensor:
        """The tower's features of frames."""
        pixels = torch.from_numpy(np.concatenate([f.pixels for f in frames]))
        return self.model.tower(pixels, [f.grid for f in frames])


def train(run: Run) -> None:
    """Steps until the time is over; logs, evaluates, saves and publishes on the way."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stop.append(n))
    args, seen, total, probed, since = run.args, 0, 0.0, 0.0, time.monotonic()
    marks = {"eval": run.seconds, "publish": run.seconds}
    trunk_end = 60 * args.minutes
    while not stop and run.seconds < trunk_end + 60 * args.mtp_minutes:
        if not run.mtp and run.seconds >= trunk_end:
            run.mtp = True
            run.optimizers = run.make_optimizers()
        start = time.monotonic()
        loss, extra, tokens = run.one_step()
        run.seconds += min(20.0, time.monotonic() - start)  # a suspended process does not age
        run.step, seen = run.step + 1, seen + tokens
        total, probed = total + loss, probed + extra
        if run.step % 50 == 0:
            speed = seen / (time.monotonic() - since)
            print(
                f"{time.strftime('%H:%M:%S')} step {run.step} {'mtp' if run.mtp else 'trunk'} "
                f"{run.seconds / 60:.1f} min  loss {total / 50:.4f}  probe {probed / 50:.3f}  "
                f"rate {run.rate():.2f}  {speed:.0f} tokens/s",
                flush=True,
            )
            seen, total, probed, since = 0, 0.0, 0.0, time.monotonic()
        if run.level() > 0 and run.seconds - marks["eval"] > 60 * args.eval_minutes:
            marks["eval"] = run.seconds
            run.accuracy = accuracy(run.model, run.renderer, 11, 32, 0.4)
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
    ap.add_argument("--start", type=Path, help="folder of weights to begin with")
    ap.add_argument("--start-level", type=float, default=0, help="where the curriculum begins")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tokens", type=int, default=3072, help="tokens a step")
    ap.add_argument("--lr", type=float, default=5e-3, help="peak learning rate")
    ap.add_argument("--tower-lr", type=float, default=5e-3, help="the vision tower's")
    ap.add_argument(
        "--tower-minutes", type=float, default=10, help="of --minutes, for the tower alone"
    )
    ap.add_argument("--tower-batch", type=int, default=96, help="examples a step meanwhile")
    ap.add_argument(
        "--tower-calm", type=float, default=0.2, help="share of its learning rate afterwards"
    )
    ap.add_argument("--extra", type=int, default=12, help="examples a step to practise on then")
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
