"""What `heads.closed_form` costs at T = 1 and at a large T, with its gradient."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from measuring import Verdict, ratio, take_turns
from torch import Tensor
from torch.nn import functional

from bilevel_models import heads

__all__ = ["ClosedRow", "closed_form_rows", "flatness", "print_closed"]

LONG, MOST = 4096, 1.5


@final
@dataclass(frozen=True, kw_only=True)
class ClosedRow:
    """`heads.closed_form` with its gradient, in milliseconds."""

    batch: int
    images: int
    dim: int
    way: int
    ms_one: float
    ms_long: float
    ratio: float


def closed_form_rows(device: torch.device, repeats: int) -> list[ClosedRow]:
    """Return what the closed form costs for heads of several sizes, with its gradient."""
    rows = []
    sizes = ((32, 5, 256, 5), (4, 5, 800, 5), (8, 60, 256, 60), (8, 100, 256, 20))
    for batch, n, dim, way in sizes:
        torch.manual_seed(0)
        features = functional.normalize(torch.randn(batch, n, dim), dim=-1)
        h = (3.0 * features).to(device).requires_grad_()
        targets = torch.eye(way, device=device).repeat(batch, n // way, 1)
        step_size = torch.tensor(0.1, device=device, requires_grad=True)
        sides = {
            "one": partial(_closed_form, h, targets, step_size, 1),
            "long": partial(_closed_form, h, targets, step_size, LONG),
        }
        times = take_turns(sides, 3 * repeats, device)
        rows.append(
            ClosedRow(
                batch=batch,
                images=n,
                dim=dim,
                way=way,
                ms_one=statistics.median(times["one"]),
                ms_long=statistics.median(times["long"]),
                ratio=ratio(times, "long", "one"),
            )
        )
    return rows


def _closed_form(h: Tensor, targets: Tensor, step_size: Tensor, steps: int) -> None:
    head = heads.closed_form(h, targets, steps=steps, step_size=step_size)
    loss = heads.squared_error(heads.logits(head, h), targets).sum()
    torch.autograd.grad(loss, (h, step_size))


def flatness(rows: Sequence[ClosedRow]) -> Verdict:
    """Judge the worst of the sizes."""
    worst = max(rows, key=lambda row: row.ratio)
    return Verdict(
        claim=f"closed form: T = {LONG} costs at most {MOST} × T = 1",
        met=worst.ratio <= MOST,
        figure=f"at most {worst.ratio:.2f}, {worst.batch} heads of {worst.images} images",
    )


def print_closed(rows: Sequence[ClosedRow]) -> None:
    """Print the table of the closed form."""
    print("\nSquared loss, T steps in closed form, with the gradient in features and step size:\n")
    print(f"| episodes | images | dim | way | T = 1, ms | T = {LONG}, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        print(
            f"| {r.batch} | {r.images} | {r.dim} | {r.way} | {r.ms_one:.2f} | {r.ms_long:.2f} "
            f"| {r.ratio:.2f} |"
        )
