"""T steps of descent on the heads of a meta-batch, recorded or not (the maths is in sweep.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bilevel_models.heads.guard import check_run
from bilevel_models.heads.losses import Loss

__all__ = ["Kind", "Record", "Run", "descend_run"]


@final
@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is not a number: the loss, and whether u are coefficients (Gram) or weights."""

    loss: Loss
    dual: bool


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """The tensors of a run, in the letters of sweep.py.

    Attributes:
        span: F, (batch, p, n).
        start: u_0, (batch, way, p).
        offset: o, (batch, way, n), or zero of shape (1, 1, 1).
        kept: c_0 … c_{T-1}, (T,).
        targets: y, (batch, way, n).
        sizes: ε, (T,).
        decay: ρ, a scalar.
        momentum: μ, a scalar.
    """

    span: Tensor
    start: Tensor
    offset: Tensor
    kept: Tensor
    targets: Tensor
    sizes: Tensor
    decay: Tensor
    momentum: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the attributes in their order."""
        return tuple(vars(self).values())


@final
@dataclass(frozen=True, kw_only=True)
class Record:
    """What the adjoint needs of a run.

    Attributes:
        states: u_0 … u_T, (T + 1, batch, way, p).
        residuals: r_0 … r_{T-1}, (T, batch, way, n).
        velocities: v_1 … v_T, (T, batch, way, p); the residuals themselves where they are equal.
    """

    states: Tensor
    residuals: Tensor
    velocities: Tensor


def descend_run(kind: Kind, run: Run, *, keep: bool) -> Record:
    """Take the T steps; unless `keep`, the record holds the last state, residual and velocity.

    Raises:
        HeadDivergenceError: the run diverged.
    """
    span, offset, y, loss = run.span, run.offset, run.targets, kind.loss
    eps, kept = run.sizes.tolist(), run.kept.tolist()
    rho, mu = float(run.decay), float(run.momentum)
    aliased = kind.dual and rho == 0.0 and mu == 0.0
    steps = len(eps)

    u, states = _slots(run.start, steps + 1, keep)
    r, residuals = _slots(y, steps, keep)
    v, velocities = (r, residuals) if aliased else _slots(run.start, steps, keep)
    u[0].copy_(run.start)
    z, previous, first = torch.empty_like(y), torch.zeros_like(run.start), y.new_zeros(())
    for t in range(steps):
        torch.baddbmm(offset, u[t], span, beta=kept[t], out=z)
        loss.link(z, r[t])
        r[t].sub_(y)
        if not kind.dual:
            torch.baddbmm(previous, r[t], span.mT, beta=mu, out=v[t])
        elif not aliased:
            torch.add(r[t], previous, alpha=mu, out=v[t])
        if rho:
            v[t].add_(u[t], alpha=rho)
        torch.add(u[t], v[t], alpha=-eps[t], out=u[t + 1])
        previous = v[t]
        if t == 0:
            first = torch.linalg.vector_norm(v[0])
    if steps:
        check_run(steps, first, torch.linalg.vector_norm(v[-1]), u[-1])
    return Record(states=states, residuals=residuals, velocities=velocities)


def _slots(like: Tensor, count: int, keep: bool) -> tuple[list[Tensor], Tensor]:
    """Return `count` places for tensors like one, and the tensor they are cut from.

    Unless all are kept they are one and the same place.
    """
    buffer = like.new_empty(count if keep else min(count, 1), *like.shape)
    views = list(buffer.unbind())
    return (views if keep else views * count), buffer
