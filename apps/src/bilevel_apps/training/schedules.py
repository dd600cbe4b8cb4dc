"""Outer learning rates, as pure functions of the hyper-iteration."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["learning_rate"]

WARM_UP = 0.3  # the part of a one-cycle run in which the rate rises
START, END = 1 / 25, 1e-5  # first (one-cycle) and last rate, as fractions of the peak


def learning_rate(
    schedule: Literal["constant", "paper", "cosine", "onecycle"], lr: float, step: int, steps: int
) -> float:
    """Return the learning rate of hyper-iteration `step` (from 0) of `steps`.

    constant: lr. paper: lr / (1 + 1e-5 step), with the rate of its Appendix D in the form of its
    code. cosine: by half a cosine from lr down to 1e-5 lr. onecycle: by half a cosine from lr/25 up
    to lr in the first 30 % of the run, then by another down to 1e-5 lr.

    All follow the number of hyper-iterations: a run that ends earlier has not come to its lowest
    rate.

    Source: Super-Convergence (Smith, Topin, 2019), section 3, for the shape of onecycle; the
    momentum is left alone here. SGDR (Loshchilov, Hutter, 2017), Eq. 5, for cosine, without
    restarts.
    """
    if schedule == "paper":
        return lr / (1 + 1e-5 * step)
    if schedule == "constant":
        return lr
    position = step / max(1, steps - 1)
    if schedule == "cosine":
        return lr * _cosine(1.0, END, position)
    if position < WARM_UP:
        return lr * _cosine(START, 1.0, position / WARM_UP)
    return lr * _cosine(1.0, END, (position - WARM_UP) / (1 - WARM_UP))


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
