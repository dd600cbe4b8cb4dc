"""Whether gradients on a device are those of the processor, and of finite differences.

engines     each engine of core on ridge regression with a penalty a feature, by
            `check_hypergradient` in float64: the largest error of a derivative along ±1 directions
networks    ∇_λ E of two 5-way 1-shot episodes, through T = 5 steps of `heads.descend` and a whole
            backbone, relative to the same in float64 on the processor; float32 and, on a GPU,
            bfloat16 autocast beside it, which are judged by nothing
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from measuring import Verdict, device_of, finish, make_parser
from torch import Tensor, nn

from bilevel_core import (
    Checkpointed,
    Exact,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Spectral,
    Unrolled,
    check_hypergradient,
)
from bilevel_models import Encoder, Normalization, create_model, heads

STEPS, WAY, QUERY = 5, 5, 3
LIMIT = 1e-8
NETWORKS = {"omniglot-net": (1, 28), "c4l": (3, 84), "resnet12": (3, 84)}
ENGINES = (Unrolled(), Reverse(), Checkpointed(), Forward(), Implicit(), Exact(), Spectral())
DESCENT = GradientDescent(step_size=0.1)
LONG = 400  # steps, after which the inner run is at its optimum, as Implicit and Exact assume


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """The relative error of a gradient, and the most that is accepted; None: it is only told."""

    what: str
    precision: str
    error: float
    limit: float | None


def engine_rows(device: torch.device) -> Iterator[Row]:
    """Yield the error of each engine of core on ridge regression."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(30, *size, dtype=torch.float64, generator=generator).to(device)
        for size in ((4,), ())
    )
    problem = Problem(
        inner=lambda w, lam: (
            0.5 * ((x[:15] @ w - y[:15]) ** 2).mean() + 0.5 * (lam.exp() * w**2).sum()
        ),
        outer=lambda w, _lam: ((x[15:] @ w - y[15:]) ** 2).mean(),
        init=torch.zeros_like,
    )
    for engine in ENGINES:
        lam = torch.zeros(4, dtype=torch.float64, device=device)
        found = check_hypergradient(problem, DESCENT, lam, steps=LONG, engine=engine)
        yield Row(
            what=type(engine).__name__,
            precision="float64",
            error=found.error,
            limit=found.tolerance,
        )


def network_rows(device: torch.device, names: tuple[str, ...]) -> Iterator[Row]:
    """Yield the error of each network's gradient, by precision."""
    for name in names:
        channels, size = NETWORKS[name]
        torch.manual_seed(0)
        network = create_model(name, channels=channels, image_size=size).double()
        images = torch.rand(2, WAY * (1 + QUERY), channels, size, size, dtype=torch.float64)
        reference = gradient(network, images, bfloat16=False)
        for precision, limit in (("float64", LIMIT), ("float32", None), ("bfloat16", None)):
            if precision == "bfloat16" and device.type == "cpu":
                continue
            dtype = torch.float64 if precision == "float64" else torch.float32
            theirs = copy.deepcopy(network).to(device, dtype)
            found = gradient(theirs, images.to(device, dtype), bfloat16=precision == "bfloat16")
            error = float((found - reference).norm() / reference.norm())
            yield Row(what=name, precision=precision, error=error, limit=limit)


def gradient(network: nn.Module, images: Tensor, *, bfloat16: bool) -> Tensor:
    """Return ∇_λ E as one vector, float64 on the processor."""
    encoder = Encoder(
        backbone=network,
        normalization=Normalization.EPISODE,
        unit_length=True,
        bfloat16=bfloat16,
    )
    h_s, h_q = encoder(images[:, :WAY], images[:, WAY:], training=True)
    labels = torch.arange(WAY, device=images.device).expand(len(images), WAY)
    targets = heads.one_hot(labels, WAY, h_s)
    head = heads.descend(h_s, targets, steps=STEPS, step_size=0.1, scale=10.0)
    asked = labels.repeat_interleave(QUERY, dim=1)
    loss = heads.cross_entropy(heads.logits(head, h_q), asked).mean()
    grads = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
    return torch.cat([grad.flatten().double().cpu() for grad in grads])


def judge(rows: list[Row]) -> list[Verdict]:
    """Return whether every error that is judged is within its limit."""
    judged = [row for row in rows if row.limit is not None]
    wrong = [row for row in judged if not row.error <= (row.limit or 0.0)]
    worst = ", ".join(f"{row.what} {row.error:.1e}" for row in wrong)
    return [
        Verdict(
            claim="gradients agree with the processor's and with finite differences",
            met=not wrong,
            figure=worst or f"{len(judged)} compared in float64",
        )
    ]


def parse() -> argparse.Namespace:
    """Return the options."""
    return make_parser(__doc__, repeats=None).parse_args()


def main() -> None:
    """Print a row for each engine and network; the exit status is 1 where one disagrees."""
    options = parse()
    device = device_of(options)
    if device is None:
        return
    print("\n| gradient | precision | relative error |\n| --- | --- | --- |")
    rows: list[Row] = []
    names = tuple(NETWORKS)[: 1 if options.quick else None]
    for row in (*engine_rows(device), *network_rows(device, names)):
        print(f"| {row.what} | {row.precision} | {row.error:.1e} |")
        rows.append(row)
    verdicts: list[Any] = judge(rows)
    finish(options, rows, verdicts)
    if not verdicts[0].met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
