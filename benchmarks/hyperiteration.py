"""The cost of a hyper-iteration, beside the bare backbone and the loops of few-shot libraries.

All sides see the same images and take turns; ratios are medians of the ratio turn by turn.

bare         one forward and backward pass of the backbone, at the best of several chunk sizes
ours         `MetaTask.hypergradient`
loop, …      the loops of episode_loops.py, in float32

Every side has a process of its own, because `keep_freed_memory`, which our command lines call,
holds for a whole process: bare and ours have it, the loops have it with --keep-memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import final

import torch
from episode_loops import LOOPS, hyper_iteration, stock_network
from torch import Tensor

from bilevel_apps.hardware import choose_precision
from bilevel_apps.meta_task import Episodes, HyperRepresentation, MetaTask
from bilevel_models import EACH_SET, Encoder, Normalization, create_model, keep_freed_memory

OWN = ("bare", "ours")
CASES = {
    "Omniglot net, 32 episodes of 5-way 1-shot": ("omniglot-net", 1, 28, 32, 5),
    "C4L at 84×84, 4 episodes of 5-way 1-shot": ("c4l", 3, 84, 4, 5),
}


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a process runs."""

    case: str
    side: str
    threads: int
    precision: str
    keep_memory: bool


def make_side(setting: Setting) -> Callable[[int], float]:
    """Return a function of T that runs one hyper-iteration, or pass, and returns its loss."""
    name, channels, size, batch, way = CASES[setting.case]
    torch.manual_seed(0)
    backbone = create_model(name, channels=channels, image_size=size)
    labels = torch.arange(way).expand(batch, way).contiguous()
    episodes = Episodes(
        support=_images(batch, way, channels, size),
        query=_images(batch, 15 * way, channels, size),
        support_labels=labels,
        query_labels=labels.repeat_interleave(15, dim=1),
        way=way,
    )
    model = HyperRepresentation(backbone, inner_lr=0.1, scale=10.0, learn_lr=True, learn_scale=True)
    if setting.side in LOOPS:
        return partial(_loop, setting.side, model, stock_network(backbone), episodes)
    model.to(memory_format=torch.channels_last)
    encoder = Encoder(
        backbone=backbone,
        normalization=Normalization.GHOST,
        unit_length=True,
        bfloat16=setting.precision == "bfloat16",
    )
    if setting.side == "ours":
        return partial(_ours, MetaTask(model=model, encoder=encoder, steps=0), episodes)
    return _best_chunks(encoder, torch.cat((episodes.support, episodes.query), dim=1))


def _images(*shape: int) -> Tensor:
    """Return what a loader gives: channels last, (batch, n, channels, size, size)."""
    batch, n, channels, size = shape
    return torch.rand(batch, n, size, size, channels).movedim(-1, -3)


def _loop(
    side: str, model: HyperRepresentation, network: torch.nn.Module, episodes: Episodes, steps: int
) -> float:
    network.zero_grad()
    model.zero_grad()
    return hyper_iteration(
        network, LOOPS[side][0], episodes, steps=steps, lr=model.log_lr, scale=model.log_scale
    )


def _ours(task: MetaTask, episodes: Episodes, steps: int) -> float:
    task = MetaTask(model=task.model, encoder=task.encoder, steps=steps)
    return task.hypergradient(episodes).loss


def _best_chunks(encoder: Encoder, images: Tensor) -> Callable[[int], float]:
    """Return the bare pass, forward and backward chunk by chunk, at its fastest chunk size."""

    def bare(size: int, steps: int) -> float:
        del steps
        encoder.backbone.zero_grad()
        for chunk in images.flatten(0, 1).split(size):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=encoder.bfloat16):
                h = encoder.backbone(chunk.contiguous(memory_format=torch.channels_last), EACH_SET)
            h.backward(torch.ones_like(h))
        return 0.0

    each, count = images.shape[1], images[:, :, 0, 0, 0].numel()
    sizes = sorted({each // 8, each, 2 * each, 4 * each, count})
    best = min(sizes, key=lambda n: min(milliseconds(partial(bare, n), 0)[0] for _ in range(4)))
    return partial(bare, best)


def milliseconds(function: Callable[[int], float], steps: int) -> tuple[float, float]:
    """Return the wall time of one call and what it returned."""
    start = time.perf_counter()
    value = function(steps)
    return 1000 * (time.perf_counter() - start), value


def serve(pipe: Connection, setting: Setting) -> None:
    """Run one side each time that a number of steps arrives, until None does."""
    torch.set_num_threads(setting.threads)
    if setting.keep_memory:
        keep_freed_memory()
    function = make_side(setting)
    while (steps := pipe.recv()) is not None:
        pipe.send(milliseconds(function, steps))


def measure(sides: dict[str, Connection], steps: int, repeats: int) -> dict[str, list[float]]:
    """Return each side's times; the first turn is not counted."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    losses = {}
    for turn in range(repeats + 1):
        for side, pipe in sides.items():
            pipe.send(steps)
            elapsed, losses[side] = pipe.recv()
            if turn:
                times[side].append(elapsed)
    apart = {side: abs(losses[side] / losses["ours"] - 1) for side in sides if side in LOOPS}
    if wrong := {side: d for side, d in apart.items() if d > 0.02}:
        raise SystemExit(f"error: losses differ from ours at T = {steps} (relatively): {wrong}")
    return times


def row(times: dict[str, list[float]], side: str) -> str:
    """Return a side's median and the medians of its ratios to the bare pass and to ours."""

    def ratio(to: str) -> float:
        return statistics.median(a / b for a, b in zip(times[side], times[to], strict=True))

    return f"{statistics.median(times[side]):.0f} | {ratio('bare'):.2f} | {ratio('ours'):.2f}"


def main() -> None:
    """Print a row for each case, T and side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 64, 256])
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--sides", nargs="+", choices=(*OWN, *LOOPS), default=[*OWN, *LOOPS])
    parser.add_argument("--keep-memory", action="store_true", help="the loops keep freed memory")
    options = parser.parse_args()
    precision = choose_precision(options.precision, torch.device("cpu"))
    print(
        f"torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats; bare "
        f"and ours in {precision}, loops in float32{', keeping memory' * options.keep_memory}"
    )
    missing = {side for side, (_, package) in LOOPS.items() if package and not _installed(package)}
    for side in sorted(missing & set(options.sides)):
        print(f"{side}: not installed")
    print("| case | T | side | ms | over bare | over ours |\n| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        chosen = [*OWN, *(s for s in options.sides if s in LOOPS and s not in missing)]
        _compare(case, chosen, options, precision)


def _compare(case: str, chosen: list[str], options: argparse.Namespace, precision: str) -> None:
    context = multiprocessing.get_context("spawn")
    sides = {}
    for side in chosen:
        setting = Setting(
            case=case,
            side=side,
            threads=options.threads,
            precision=precision,
            keep_memory=side in OWN or options.keep_memory,
        )
        sides[side], other = context.Pipe()
        context.Process(target=serve, args=(other, setting), daemon=True).start()
    for steps in options.steps:
        times = measure(sides, steps, options.repeats)
        for side in chosen:
            print(f"| {case} | {steps} | {side} | {row(times, side)} |", flush=True)
    for pipe in sides.values():
        pipe.send(None)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    main()
