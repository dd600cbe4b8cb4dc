"""What scoring test episodes costs, beside the bare forward pass and beside loops over episodes.

All sides score the same episodes of Omniglot's shape, 5-way 1-shot, with the preset's network and
fresh weights, heads by T = 5 steps, and take turns.

ours            `scoring.score_episodes`, in the machine's best precision and in float32
bare            the backbone's forward pass over the same images, in the same batches, no heads
loop, no graph  an episode at a time, stock modules in float32, features without a graph
loop, graph     the same, as a training loop leaves it: autograd on, and through the T steps

Then the parts of ours: drawing episodes, making images of them, encoding, heads.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from episode_loops import stock_network
from generated import generate, store_with
from measuring import (
    Verdict,
    device_of,
    finish,
    make_parser,
    milliseconds,
    precisions,
    ratio,
    take_turns,
)
from torch import Tensor, nn
from torch.nn import functional

from bilevel_apps.config import load_preset, parse_config
from bilevel_apps.runs.build import make_learner
from bilevel_apps.scoring.score import score_episodes
from bilevel_data import EpisodeSampler, EpisodeSpec, ImageSplit
from bilevel_meta.episodes import Episodes, to_device
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import RUNNING, Encoder, heads

SHAPE, CLASSES, EACH = (28, 28, 1), 423, 20
LIMIT = 8.0  # seconds
SETTLE = 64  # episodes of training mode, after which the running averages fit the images
STEPS = 5  # T of the heads, which the loops take too


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A side: seconds for all episodes, and medians of ratios to the bare pass and to ours."""

    side: str
    precision: str
    seconds: float
    over_bare: float
    over_ours: float


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of ours: seconds for all episodes, and its share of the parts' sum."""

    part: str
    precision: str
    seconds: float
    share: float


def make_tasks(
    options: argparse.Namespace, sampler: EpisodeSampler
) -> dict[str, HyperRepresentation]:
    """Return the preset's task in each precision, with the same weights and settled averages."""
    device = torch.device(options.device)
    tasks: dict[str, HyperRepresentation] = {}
    for precision in dict.fromkeys((*precisions(options), "float32")):
        settings = load_preset(options.preset) | {"precision": precision}
        settings["inner"] = settings.get("inner", {}) | {"steps": STEPS}
        task = make_learner(parse_config(settings, options.preset), SHAPE, device)
        for number in range(SETTLE):
            batch = to_device(sampler.batch(number, 1), sampler.spec.way, device)
            task.encoder(batch.support, batch.query, training=True)
        tasks[precision] = task
    return tasks


def make_sides(
    tasks: Mapping[str, HyperRepresentation],
    sampler: EpisodeSampler,
    count: int,
    device: torch.device,
) -> dict[str, Callable[[], Any]]:
    """Return what takes turns; those that score return the mean accuracy."""
    sides: dict[str, Callable[[], Any]] = {}
    batches = scored_batches(sampler, count, device)
    for precision, task in tasks.items():
        sides[f"ours {precision}"] = partial(_ours, task, sampler, count, device)
        sides[f"bare {precision}"] = partial(_bare, task.encoder, batches)
    task = tasks["float32"]
    network = stock_network(task.encoder.backbone).to(device).eval()
    for graph in (False, True):
        name = "loop, graph float32" if graph else "loop, no graph float32"
        sides[name] = partial(_loop, network, task, sampler, count, graph)
    return sides


def scored_batches(sampler: EpisodeSampler, count: int, device: torch.device) -> list[Episodes]:
    """Return the batches that `score_episodes` makes."""
    batches: list[Episodes] = []

    def keep(batch: Episodes) -> Tensor:
        batches.append(batch)
        return batch.support.new_zeros(len(batch.support))

    score_episodes(keep, sampler, episodes=count, device=device)
    return batches


def _ours(
    task: HyperRepresentation, sampler: EpisodeSampler, count: int, device: torch.device
) -> float:
    return score_episodes(task.accuracies, sampler, episodes=count, device=device).accuracy


def _bare(encoder: Encoder, batches: list[Episodes]) -> None:
    for batch in batches:
        images = torch.cat((batch.support.flatten(0, 1), batch.query.flatten(0, 1)))
        kind = images.device.type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=encoder.bfloat16):
            encoder.backbone(images.contiguous(memory_format=torch.channels_last), RUNNING)


def _loop(
    network: nn.Module, task: HyperRepresentation, sampler: EpisodeSampler, count: int, graph: bool
) -> float:
    """Score episode by episode, as an example of a few-shot library does."""
    device = task.log_lr.device
    lr, scale = task.log_lr.exp(), task.log_scale.exp()
    total = 0.0
    for number in range(count):
        batch = to_device(sampler.batch(number, 1), sampler.spec.way, device)
        images = torch.cat((batch.support[0], batch.query[0])).contiguous()
        with torch.set_grad_enabled(graph):
            features = network(images)
            if task.encoder.unit_length:
                features = functional.normalize(features, dim=-1)
            features = features * (scale if graph else scale.detach())
        h_s, h_q = features.split((batch.support.shape[1], batch.query.shape[1]))
        head = _head(h_s, batch.support_labels[0], lr if graph else lr.detach(), task.steps, graph)
        predicted = functional.linear(h_q, *head).argmax(dim=-1)
        total += float((predicted == batch.query_labels[0]).float().mean())
    return total / count


def _head(h: Tensor, labels: Tensor, lr: Tensor, steps: int, graph: bool) -> tuple[Tensor, Tensor]:
    way = int(labels.max()) + 1
    w = h.new_zeros(way, h.shape[1]).requires_grad_()
    b = h.new_zeros(way).requires_grad_()
    for _ in range(steps):
        loss = functional.cross_entropy(functional.linear(h, w, b), labels)
        g_w, g_b = torch.autograd.grad(loss, (w, b), create_graph=graph)
        w, b = w - lr * g_w, b - lr * g_b
        if not graph:
            w, b = w.detach().requires_grad_(), b.detach().requires_grad_()
    return w, b


def parts(
    task: HyperRepresentation, sampler: EpisodeSampler, sizes: list[int], device: torch.device
) -> dict[str, float]:
    """Return the milliseconds that each part of `score_episodes` takes, in batches of `sizes`."""
    way, spent = sampler.spec.way, dict.fromkeys(("draw", "images", "encode", "heads"), 0.0)

    def timed(part: str, function: Callable[[], Any]) -> Any:
        elapsed, found = milliseconds(function, device)
        spent[part] += elapsed
        return found

    for first, number in zip(accumulate(sizes, initial=0), sizes, strict=False):
        drawn = timed("draw", partial(sampler.batch, first, number))
        batch = timed("images", partial(to_device, drawn, way, device))
        encode = partial(torch.no_grad()(task.encoder), batch.support, batch.query, training=False)
        features = timed("encode", encode)
        timed("heads", partial(_heads, task, batch, *features))
    return spent


@torch.no_grad()
def _heads(task: HyperRepresentation, batch: Episodes, support: Tensor, query: Tensor) -> Tensor:
    scale = task.log_scale.exp()
    targets = heads.one_hot(batch.support_labels, batch.way, support)
    lr = task.log_lr.exp()
    head = heads.descend(support, targets, steps=task.steps, step_size=lr, scale=scale)
    return heads.accuracy(heads.logits(head, query), batch.query_labels)


def check(sides: Mapping[str, Callable[[], Any]]) -> float:
    """Return the accuracy of ours in float32; refuse sides that score something else."""
    found = {name: side() for name, side in sides.items() if not name.startswith("bare")}
    ours = found["ours float32"]
    if wrong := {name: x for name, x in found.items() if abs(x - ours) > 0.02}:
        raise SystemExit(f"error: accuracies differ from {ours:.4f} of ours in float32: {wrong}")
    return ours


def measure(
    tasks: Mapping[str, HyperRepresentation], sampler: EpisodeSampler, options: argparse.Namespace
) -> list[Row]:
    """Return a row a side, printed."""
    device, best = torch.device(options.device), next(iter(tasks))
    sides = make_sides(tasks, sampler, options.episodes, device)
    print(f"accuracy, of fresh weights: {100 * check(sides):.2f} %\n")
    times = take_turns(sides, options.repeats, device)
    print("| side | precision | seconds | over bare | over ours |\n| --- | --- | --- | --- | --- |")
    rows = []
    for name in sides:
        side, _, precision = name.rpartition(" ")
        row = Row(
            side=side,
            precision=precision,
            seconds=statistics.median(times[name]) / 1000,
            over_bare=ratio(times, name, f"bare {precision}"),
            over_ours=ratio(times, name, f"ours {best}"),
        )
        print(
            f"| {side} | {precision} | {row.seconds:.2f} | {row.over_bare:.2f} "
            f"| {row.over_ours:.2f} |"
        )
        rows.append(row)
    return rows


def measure_parts(
    tasks: Mapping[str, HyperRepresentation], sampler: EpisodeSampler, options: argparse.Namespace
) -> list[Part]:
    """Return a row a part of ours, printed; medians over the turns."""
    print("\n| part of ours | precision | seconds | share |\n| --- | --- | --- | --- |")
    device = torch.device(options.device)
    sizes = [len(batch.support) for batch in scored_batches(sampler, options.episodes, device)]
    rows = []
    for precision, task in tasks.items():
        turns = [parts(task, sampler, sizes, device) for _ in range(options.repeats)]
        sums = [sum(turn.values()) for turn in turns]
        for part in turns[0]:
            share = statistics.median(t[part] / s for t, s in zip(turns, sums, strict=True))
            seconds = statistics.median(turn[part] for turn in turns) / 1000
            rows.append(Part(part=part, precision=precision, seconds=seconds, share=share))
            print(f"| {part} | {precision} | {seconds:.3f} | {100 * share:.1f} % |")
    return rows


def test_images(options: argparse.Namespace) -> ImageSplit:
    """Return the test split of the user's store, or one made up of its shape."""
    with TemporaryDirectory() as folder:
        store = store_with(options.data, "test", SHAPE)
        if store is None:
            sizes = {"test": (CLASSES, EACH)}
            store = generate(Path(folder) / "generated.h5", sizes, SHAPE, turned=True)
        return store.load("test")


def judge(rows: list[Row], options: argparse.Namespace) -> list[Verdict]:
    """Return whether ours is fast enough; the best precision decides."""
    claim = f"600 test episodes evaluate in under {LIMIT:g} s"
    ours = [row for row in rows if row.side == "ours"]
    figure = ", ".join(f"{row.seconds:.2f} s in {row.precision}" for row in ours)
    if options.episodes != 600:
        return [Verdict(claim=claim, met=None, figure=f"{options.episodes} episodes: {figure}")]
    return [Verdict(claim=claim, met=ours[0].seconds < LIMIT, figure=figure)]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="stores with test splits")
    parser.add_argument("--preset", default="omniglot-5way-1shot")
    parser.add_argument("--episodes", type=int, default=600)
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.episodes = 1, 12
    return options


def main() -> None:
    """Print a row for each side and part, then a line for the criterion."""
    options = parse()
    device = device_of(options)
    if device is None:
        return
    spec = EpisodeSpec(way=5, shot=1, query=15)
    sampler = EpisodeSampler(test_images(options), spec, seed=0, rotations=True)
    tasks = make_tasks(options, sampler)
    rows = measure(tasks, sampler, options)
    components = measure_parts(tasks, sampler, options)
    everything: list[Any] = [*rows, *components]
    finish(options, everything, judge(rows, options))


if __name__ == "__main__":
    main()
