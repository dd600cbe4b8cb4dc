"""Heads trained by T steps of gradient descent or heavy ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bilevel_models.heads.checks import (
    check_initial,
    check_sets,
    check_steps,
    precise,
    scalar,
)
from bilevel_models.heads.linear import (
    Form,
    Head,
    augmented,
    coefficients_to_head,
    form_for,
    gram,
    logits,
    rows_to_head,
    zeros,
)
from bilevel_models.heads.unrolled import CROSS_ENTROPY, Kind, Loss, Run, final_state
from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["descend"]


@precise
def descend(
    support: Tensor,
    targets: Tensor,
    *,
    steps: int,
    step_size: Tensor | float,
    scale: Tensor | float = 1.0,
    decay: Tensor | float = 0.0,
    momentum: Tensor | float = 0.0,
    initial: Head | None = None,
    loss: Loss = CROSS_ENTROPY,
    form: Form | None = None,
) -> Head:
    """Return w_T, the head of each episode after T steps on its support images.

    L(w) = mean_i ℓ(s h_i W + b, y_i) + (ρ/2) ‖w‖²,
    v_{t+1} = μ v_t + ∇L(w_t),  w_{t+1} = w_t - η_t v_{t+1},  v_0 = 0.

    w is W and b: the bias is decayed with the weights, because only then is the Gram form exact.
    The result can be differentiated once in every tensor that is passed.

    Args:
        support: features h, (batch, n, dim).
        targets: y, (batch, n, way), of the features' dtype: classes (`one_hot`) or soft labels.
        steps: T.
        step_size: η, one number or one a step, (T,).
        scale: s; the head carries it.
        decay: ρ.
        momentum: μ, in [0, 1).
        initial: w_0, {"weight": (batch or 1, dim, way), "bias": (batch or 1, 1, way)}; zero if
            None.
        loss: ℓ.
        form: what is stepped; None takes the cheaper.

    Raises:
        TypeError, ValueError: arguments whose dtype or shape do not fit.
        HeadDivergenceError: the run ends not finite or grows without bound.

    Cost: once, n² dim for the Gram matrix; a step, n² way (Gram) or 2 n (dim + 1) way (primal) an
    episode, forward and backward; memory of a few T · n · way numbers an episode, whatever dim is.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 2.3 and Eq. 10; the span of the support features as in A Generalized
    Representer Theorem (Schölkopf, Herbrich, Smola, 2001).
    """
    check_steps(steps)
    check_sets(support, targets)
    n, s = support.shape[1], scalar(scale, "scale", support)
    if initial is not None:
        initial = check_initial(initial, support, targets)
    # The mean over images is taken out of the loop: ε = η / n and n ρ in place of ρ.
    pace = _Pace(
        sizes=_sizes(step_size, steps, support) / n,
        decay=scalar(decay, "decay", support) * n,
        momentum=scalar(momentum, "momentum", support),
    )
    if (form or form_for(support)) is Form.PRIMAL:
        return _by_weights(support, targets, s, pace, initial, loss)
    return _by_coefficients(support, targets, s, pace, initial, loss)


@final
@dataclass(frozen=True, kw_only=True)
class _Pace:
    sizes: Tensor
    decay: Tensor
    momentum: Tensor


def _by_weights(
    support: Tensor, targets: Tensor, s: Tensor, pace: _Pace, initial: Head | None, loss: Loss
) -> Head:
    zero, start = support.new_zeros(()), initial or zeros(support, targets.shape[2])
    run = Run(
        span=augmented(support, s).mT.contiguous(),
        start=torch.cat((start["weight"], start["bias"]), dim=1).mT.contiguous(),
        offset=zero,
        kept=zero.expand(len(pace.sizes)),
        targets=targets.mT.contiguous(),
        **vars(pace),
    )
    return rows_to_head(s, final_state(Kind(loss=loss, dual=False), run).mT)


def _by_coefficients(
    support: Tensor, targets: Tensor, s: Tensor, pace: _Pace, initial: Head | None, loss: Loss
) -> Head:
    """Descend on A in w_t = c_t w_0 + [s h, 1]ᵀ A_t."""
    zero, y = support.new_zeros(()), targets.mT.contiguous()
    offset, kept = zero, zero.expand(len(pace.sizes) + 1)
    if initial is not None:
        offset = logits({**initial, "scale": s}, support).mT.contiguous()
        kept = _kept_fractions(**vars(pace))
    run = Run(
        span=gram(support, s),
        start=torch.zeros_like(y),
        offset=offset,
        kept=kept[:-1],
        targets=y,
        **vars(pace),
    )
    head = coefficients_to_head(support, s, final_state(Kind(loss=loss, dual=True), run).mT)
    if initial is None:
        return head
    return head | {name: head[name] + kept[-1] * initial[name] for name in initial}


def _sizes(step_size: Tensor | float, steps: int, like: Tensor) -> Tensor:
    """Return η of each step, (T,), with its graph if it has one."""
    eta = torch.as_tensor(step_size, dtype=like.dtype, device=like.device)
    if eta.ndim == 0:
        return eta.expand(steps)
    if eta.shape != (steps,):
        raise ValueError(
            f"step_size has shape {tuple(eta.shape)} for T = {steps} steps: give one number, or "
            f"one a step, ({steps},)"
        )
    return eta


def _kept_fractions(sizes: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
    """Return c_0 … c_T, the weight of w_0 in each state, (T + 1,).

    d_{t+1} = μ d_t + ρ c_t,  c_{t+1} = c_t - ε_t d_{t+1},  from c_0 = 1 and d_0 = 0: the recursion
    of w itself, without data. Without momentum it is a product of 1 - ε_t ρ.

    Args:
        sizes: ε, (T,).
        decay: ρ.
        momentum: μ.

    Cost: T steps on numbers, without a graph.
    """
    kept: Tensor = _Kept.apply(sizes, decay, momentum)  # type: ignore[no-untyped-call]
    return kept


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
        ctx.numbers = eps, rho, mu = sizes.tolist(), float(decay), float(momentum)
        c, d = [1.0], [0.0]
        for e in eps:
            d.append(mu * d[-1] + rho * c[-1])
            c.append(c[-1] - e * d[-1])
        ctx.states = c, d
        return sizes.new_tensor(c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivatives()
        (eps, rho, mu), (c, d) = ctx.numbers, ctx.states
        cotangents = grad.tolist()
        c_bar, d_bar, rho_bar, mu_bar, eps_bar = cotangents[-1], 0.0, 0.0, 0.0, [0.0] * len(eps)
        for t in reversed(range(len(eps))):
            eps_bar[t] = -c_bar * d[t + 1]
            d_bar = mu * d_bar - eps[t] * c_bar
            rho_bar += d_bar * c[t]
            mu_bar += d_bar * d[t]
            c_bar += rho * d_bar + cotangents[t]
        return grad.new_tensor(eps_bar), grad.new_tensor(rho_bar), grad.new_tensor(mu_bar)
