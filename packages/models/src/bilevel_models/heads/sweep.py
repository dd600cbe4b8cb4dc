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

from typing import Any

import torch
from torch import Tensor

from bilevel_models.heads.adjoint import adjoint, gradients
from bilevel_models.heads.guard import refuse_second_derivatives
from bilevel_models.heads.precision import without_autocast
from bilevel_models.heads.run import Kind, Record, Run, descend_run

__all__ = ["final_state"]

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


def _named(tensors: Any) -> Run:
    return Run(**dict(zip(NAMES, tensors, strict=True)))


class _FinalState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: Kind, *tensors: Tensor) -> Tensor:
        record = descend_run(kind, _named(tensors), keep=True)
        ctx.kind = kind
        ctx.save_for_backward(*tensors, record.states, record.residuals, record.velocities)
        return record.states[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        *tensors, states, residuals, velocities = ctx.saved_tensors
        record = Record(states=states, residuals=residuals, velocities=velocities)
        run = _named(tensors)
        with without_autocast(grad):
            found = gradients(ctx.kind, run, record, adjoint(ctx.kind, run, record, grad))
        return None, *(found.get(name) for name in NAMES)
