"""The adjoint of a run: one backward sweep, then one operation for each sum over the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bilevel_models.heads.run import Kind, Record, Run

__all__ = ["Adjoint", "adjoint", "gradients"]


@final
@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """The cotangents of a run, in the letters of sweep.py.

    Attributes:
        states: a_0 … a_T, of u_0 … u_T.
        velocities: g_0 … g_{T-1}, of v_1 … v_T.
        logits: q_0 … q_{T-1}, of z_0 … z_{T-1}.
    """

    states: Tensor
    velocities: Tensor
    logits: Tensor


def adjoint(kind: Kind, run: Run, record: Record, grad: Tensor) -> Adjoint:
    """Return the cotangents that ∂E/∂u_T, (batch, way, p), gives a recorded run."""
    eps, rho, mu = run.sizes.tolist(), float(run.decay), float(run.momentum)
    back, links = run.span.mT, (record.residuals + run.targets).unbind()
    made = Adjoint(
        states=torch.empty_like(record.states),
        velocities=torch.empty_like(record.velocities),
        logits=torch.empty_like(record.residuals),
    )
    a, g, q = made.states.unbind(), made.velocities.unbind(), made.logits.unbind()
    a[-1].copy_(grad)
    for t in reversed(range(len(eps))):
        torch.mul(a[t + 1], -eps[t], out=g[t])
        if mu and t + 1 < len(eps):
            g[t].add_(g[t + 1], alpha=mu)
        kind.loss.pull(links[t], g[t] if kind.dual else torch.bmm(g[t], run.span), q[t])
        torch.baddbmm(a[t + 1], q[t], back, out=a[t])
        if rho:
            a[t].add_(g[t], alpha=rho)
    return made


def gradients(kind: Kind, run: Run, record: Record, swept: Adjoint) -> dict[str, Tensor]:
    """Return ∂E of each tensor of a run, by name; of an absent offset, nothing."""
    u, r, v = record.states[:-1], record.residuals, record.velocities
    a, g, q = swept.states, swept.velocities, swept.logits
    span, targets = _outer(u, q), -g.sum(dim=0)
    if not kind.dual:
        span, targets = span + _outer(g, r), targets @ run.span
    found = {
        "span": span,
        "start": a[0],
        "targets": targets,
        "sizes": -(a[1:] * v).sum(dim=(1, 2, 3)),
        "decay": (g * u).sum(),
        "momentum": (g[1:] * v[:-1]).sum(),
    }
    if run.offset.shape == run.targets.shape:
        found["offset"] = torch.tensordot(run.kept, q, 1)
        found["kept"] = (q * run.offset).sum(dim=(1, 2, 3))
    return found


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return Σ_t x_tᵀ y_t, (batch, p, n), of (T, batch, way, p) and (T, batch, way, n)."""
    return torch.einsum("tbwp,tbwn->bpn", x, y)
