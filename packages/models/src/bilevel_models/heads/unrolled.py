"""T steps of descent as one differentiable function, without an autograd graph over the steps.

The state u is (batch, way, p), a row a class. In Gram form p = n, the span F is K, and the gradient
in u is the residual r itself; in primal form p = dim + 1, F = [s h, 1]ᵀ, and it is r Fᵀ:

    z_t = u_t F + c_t o                        logits; o: those of w_0, c_t: what is left of w_0
    r_t = link(z_t) - y
    v_{t+1} = μ v_t + r_t [Fᵀ] + ρ u_t         v_0 = 0
    u_{t+1} = u_t - ε_t v_{t+1}

and its adjoint, from a_T = ∂E/∂u_T:

    g_t = μ g_{t+1} - ε_t a_{t+1}              ∂E/∂v_{t+1}
    q_t = (∂link/∂z_t)ᵀ (g_t [F])              ∂E/∂z_t
    a_t = a_{t+1} + q_t Fᵀ + ρ g_t             ∂E/∂u_t

What is a sum over the steps, such as ∂E/∂F = Σ u_tᵀ q_t [+ g_tᵀ r_t] or ∂E/∂ρ = Σ ⟨g_t, u_t⟩, is
one operation at the end.

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), Algorithm 1, with the products of the linear head written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bilevel_models.heads.checks import check_run, without_autocast
from bilevel_models.refusals import refuse_second_derivatives

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED",
    "Adjoint",
    "Kind",
    "Loss",
    "Run",
    "Trajectory",
    "adjoint",
    "descend_run",
    "final_state",
    "gradients",
]


@final
@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss ℓ(z, y) with ∂ℓ/∂z = link(z) - y, such as that of a generalised linear model.

    Tensors are (batch, way, n): classes come second, because torch's softmax is several times
    faster over a middle axis than over a short last one.

    Attributes:
        link: writes link(z) into its second argument.
        pull: writes (∂link/∂z)ᵀ g into its third argument, from link(z) and g.
    """

    link: Callable[[Tensor, Tensor], object]
    pull: Callable[[Tensor, Tensor, Tensor], object]


def _softmax(z: Tensor, out: Tensor) -> None:
    torch.softmax(z, 1, out=out)


def _pull_softmax(p: Tensor, g: Tensor, out: Tensor) -> None:
    """Write p ∘ (g - ⟨p, g⟩): the Jacobian of softmax is diag(p) - p pᵀ."""
    torch.mul(p, g, out=out)
    out.addcmul_(p, out.sum(1, keepdim=True), value=-1)


CROSS_ENTROPY = Loss(link=_softmax, pull=_pull_softmax)
"""ℓ = -Σ y log softmax(z), with targets that sum to one."""

SQUARED = Loss(link=lambda z, out: out.copy_(z), pull=lambda _p, g, out: out.copy_(g))
"""ℓ = ½‖z - y‖²."""


@final
@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is not a number: the loss, and whether u are coefficients (Gram) or weights."""

    loss: Loss
    dual: bool


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """The tensors of a run, in the letters of the head of this file.

    Attributes:
        span: F, (batch, p, n).
        start: u_0, (batch, way, p).
        offset: o, (batch, way, n), or zero as a scalar.
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
class Trajectory:
    """What the adjoint needs of a run.

    Attributes:
        states: u_0 … u_T, (T + 1, batch, way, p).
        residuals: r_0 … r_{T-1}, (T, batch, way, n).
        velocities: v_1 … v_T, (T, batch, way, p); the residuals themselves where they are equal.
    """

    states: Tensor
    residuals: Tensor
    velocities: Tensor


NAMES = tuple(Run.__dataclass_fields__)


def final_state(kind: Kind, run: Run) -> Tensor:
    """Return u_T, (batch, way, p), which can be differentiated once in every tensor of the run.

    Raises:
        HeadDivergenceError: the run diverged.

    Cost: four small operations a step forward and five backward, with one more of each for
    momentum, decay and primal form; memory of T + 1 states and T residuals forward and as much
    again backward, or of one state where nothing asks for a gradient.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in run.tensors()):
        state: Tensor = _FinalState.apply(kind, *run.tensors())  # type: ignore[no-untyped-call]
        return state
    with torch.no_grad():
        return descend_run(kind, run, keep=False).states[-1]


def descend_run(kind: Kind, run: Run, *, keep: bool) -> Trajectory:
    """Take the T steps; unless `keep`, the trajectory holds the last state, residual and velocity.

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
    return Trajectory(states=states, residuals=residuals, velocities=velocities)


def _slots(like: Tensor, count: int, keep: bool) -> tuple[list[Tensor], Tensor]:
    """Return `count` places for tensors like one, and the tensor they are cut from.

    Unless all are kept they are one and the same place.
    """
    buffer = like.new_empty(count if keep else min(count, 1), *like.shape)
    views = list(buffer.unbind())
    return (views if keep else views * count), buffer


@final
@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """The cotangents of a run, in the letters of the head of this file.

    Attributes:
        states: a_0 … a_T, of u_0 … u_T.
        velocities: g_0 … g_{T-1}, of v_1 … v_T.
        logits: q_0 … q_{T-1}, of z_0 … z_{T-1}.
    """

    states: Tensor
    velocities: Tensor
    logits: Tensor


def adjoint(kind: Kind, run: Run, trajectory: Trajectory, grad: Tensor) -> Adjoint:
    """Return the cotangents that ∂E/∂u_T, (batch, way, p), gives a recorded run."""
    eps, rho, mu = run.sizes.tolist(), float(run.decay), float(run.momentum)
    back, links = run.span.mT, (trajectory.residuals + run.targets).unbind()
    made = Adjoint(
        states=torch.empty_like(trajectory.states),
        velocities=torch.empty_like(trajectory.velocities),
        logits=torch.empty_like(trajectory.residuals),
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


def gradients(kind: Kind, run: Run, trajectory: Trajectory, swept: Adjoint) -> dict[str, Tensor]:
    """Return ∂E of each tensor of a run, by name; of an absent offset, nothing."""
    u, r, v = trajectory.states[:-1], trajectory.residuals, trajectory.velocities
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


def _named(tensors: Any) -> Run:
    return Run(**dict(zip(NAMES, tensors, strict=True)))


class _FinalState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: Kind, *tensors: Tensor) -> Tensor:
        trajectory = descend_run(kind, _named(tensors), keep=True)
        ctx.kind = kind
        ctx.save_for_backward(
            *tensors, trajectory.states, trajectory.residuals, trajectory.velocities
        )
        return trajectory.states[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        *tensors, states, residuals, velocities = ctx.saved_tensors
        trajectory = Trajectory(states=states, residuals=residuals, velocities=velocities)
        run = _named(tensors)
        with without_autocast(grad):
            found = gradients(ctx.kind, run, trajectory, adjoint(ctx.kind, run, trajectory, grad))
        return None, *(found.get(name) for name in NAMES)
