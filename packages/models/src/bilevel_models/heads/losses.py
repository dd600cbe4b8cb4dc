"""Inner losses as the sweep sees them: the gradient in the logits is link(z) - y."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["CROSS_ENTROPY", "SQUARED", "Loss"]


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
