"""The cost of a hyper-iteration over that of the bare backbone: one forward and backward pass.

Same images, same chunks, same precision, interleaved; medians of the ratio pair by pair.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from bilevel_apps.meta_task import Episodes, HyperRepresentation, MetaTask
from bilevel_models import EACH_SET, Encoder, Normalization, create_model

CASES = {
    "Omniglot net, 8 episodes of 20-way 1-shot": ("omniglot-net", 1, 28, 8, 20),
    "C4L at 84×84, 4 episodes of 5-way 1-shot": ("c4l", 3, 84, 4, 5),
}


def make_case(name: str, channels: int, size: int, batch: int, way: int):
    """Return a function of T that runs a hyper-iteration, and one that runs the bare backbone."""
    torch.manual_seed(0)
    backbone = create_model(name, channels=channels, image_size=size)
    backbone.to(memory_format=torch.channels_last)
    model = HyperRepresentation(backbone, inner_lr=0.1, scale=10.0, learn_lr=True, learn_scale=True)
    labels = torch.arange(way).expand(batch, way).contiguous()
    episodes = Episodes(
        support=torch.rand(batch, way, channels, size, size),
        query=torch.rand(batch, 15 * way, channels, size, size),
        support_labels=labels,
        query_labels=labels.repeat_interleave(15, dim=1),
        way=way,
    )
    encoder = Encoder(backbone=backbone, normalization=Normalization.GHOST, unit_length=True)
    images = torch.cat((episodes.support, episodes.query), dim=1)

    def ours(steps: int) -> None:
        MetaTask(model=model, encoder=encoder, steps=steps).hypergradient(episodes)

    def bare() -> None:
        model.zero_grad()
        chunks = [c.contiguous(memory_format=torch.channels_last) for c in images]
        features = torch.cat([backbone(chunk, EACH_SET) for chunk in chunks])
        features.backward(torch.ones_like(features))

    return ours, bare


def milliseconds(function: Callable[[], None]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print a row for each case and T."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 64, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.repeats} repeats")
    print("| case | T | bare backbone, ms | hyper-iteration, ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for title, case in CASES.items():
        ours, bare = make_case(*case)
        for steps in arguments.steps:
            ours(steps)
            bare()
            pairs = [
                (milliseconds(partial(ours, steps)), milliseconds(bare))
                for _ in range(arguments.repeats)
            ]
            ratio = statistics.median(a / b for a, b in pairs)
            mine, limit = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"| {title} | {steps} | {limit:.0f} | {mine:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
