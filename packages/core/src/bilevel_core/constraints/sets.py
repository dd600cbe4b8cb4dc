"""Sets that λ is kept in: by coordinates that cannot leave them, or by projection.

Every set acts on one array. A prefix tree says which leaves of λ are kept in which set: a set
stands for every leaf under its place, and None leaves them free (reparametrization.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from bilevel_core.abstract import Backend
from bilevel_core.arrays import epsilon
from bilevel_core.types import Array

__all__ = ["Constraint", "Interval", "Positive", "Simplex"]


@runtime_checkable
class Constraint(Protocol):
    """A closed convex set with an interior, for the values of an array."""

    def contains(self, lam: Array, backend: Backend, *, strictly: bool = False) -> bool:
        """Say whether an array lies in the set; `strictly`: in its interior, where `free` is."""
        ...

    def free(self, lam: Array, backend: Backend) -> Array:
        """Return coordinates θ, any real numbers, of a point in the interior."""
        ...

    def inside(self, theta: Array, backend: Backend) -> Array:
        """Return the point of coordinates θ, the inverse of `free`; it is differentiable."""
        ...

    def project(self, lam: Array, backend: Backend) -> Array:
        """Return the nearest point of the set."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Positive:
    """λ ≥ 0 entry by entry:  λ = exp θ,  θ = log λ.

    The coordinates never give 0 before exp underflows; the projection max(λ, 0) does.
    """

    def contains(self, lam: Array, backend: Backend, *, strictly: bool = False) -> bool:
        """Say whether every entry is at least 0, or above it."""
        del backend
        return bool(((lam > 0) if strictly else (lam >= 0)).all())

    def free(self, lam: Array, backend: Backend) -> Array:
        """Return log λ."""
        return backend.namespace.log(lam)

    def inside(self, theta: Array, backend: Backend) -> Array:
        """Return exp θ."""
        return backend.namespace.exp(theta)

    def project(self, lam: Array, backend: Backend) -> Array:
        """Return max(λ, 0)."""
        return backend.namespace.clip(lam, 0, None)


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """a ≤ λ ≤ b entry by entry:  λ = a + (b - a) σ(θ),  σ(θ) = 1 / (1 + exp(-θ)).

    Attributes:
        low: a, a finite number.
        high: b, a finite number above a.

    Raises:
        ValueError: the ends are not finite or not in order.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"an interval needs finite ends with low < high, found low={self.low} and "
                f"high={self.high}: for λ ≥ 0 without an upper end take Positive"
            )

    def contains(self, lam: Array, backend: Backend, *, strictly: bool = False) -> bool:
        """Say whether every entry lies between the ends, or strictly so."""
        del backend
        if strictly:
            return bool(((lam > self.low) & (lam < self.high)).all())
        return bool(((lam >= self.low) & (lam <= self.high)).all())

    def free(self, lam: Array, backend: Backend) -> Array:
        """Return log((λ - a) / (b - λ))."""
        log = backend.namespace.log
        return log(lam - self.low) - log(self.high - lam)

    def inside(self, theta: Array, backend: Backend) -> Array:
        """Return a + (b - a) σ(θ)."""
        xp = backend.namespace
        # exp of a negative number alone: neither σ nor its derivative overflows at either end.
        small = xp.exp(xp.where(theta >= 0, -theta, theta))
        sigmoid = xp.where(theta >= 0, 1.0, small) / (1 + small)
        # Rounding alone can carry the sum past an end.
        return xp.clip(self.low + (self.high - self.low) * sigmoid, self.low, self.high)

    def project(self, lam: Array, backend: Backend) -> Array:
        """Return the nearest number of the interval."""
        return backend.namespace.clip(lam, self.low, self.high)


@final
@dataclass(frozen=True, kw_only=True)
class Simplex:
    """λ ≥ 0 and Σ λ = 1 along the last axis:  λ = softmax θ,  θ = log λ.

    Source of the projection: Efficient Projections onto the ℓ1-Ball for Learning in High Dimensions
    (Duchi, Shalev-Shwartz, Singer, Chandra, 2008), section 3.
    """

    def contains(self, lam: Array, backend: Backend, *, strictly: bool = False) -> bool:
        """Say whether every row is non-negative, or positive, and sums to 1 up to rounding."""
        if lam.ndim == 0:
            return False
        rounding = 10 * epsilon(lam, backend) * lam.shape[-1]
        signs = ((lam > 0) if strictly else (lam >= 0)).all()
        return bool(signs & (abs(lam.sum(-1) - 1) <= rounding).all())

    def free(self, lam: Array, backend: Backend) -> Array:
        """Return log λ."""
        return backend.namespace.log(lam)

    def inside(self, theta: Array, backend: Backend) -> Array:
        """Return softmax θ."""
        xp = backend.namespace
        # The shift changes nothing in the value or in its derivative, but keeps exp from overflow.
        weights = xp.exp(theta - backend.detach(xp.amax(theta, -1)[..., None]))
        return weights / weights.sum(-1)[..., None]

    def project(self, lam: Array, backend: Backend) -> Array:
        """Return max(λ - τ, 0), with the τ of each row that makes it sum to 1.

        Differs from the paper in one point: the entries above τ are found by dropping the others
        until none is left to drop, and not by sorting. Cost: a few passes, n at most.
        """
        xp = backend.namespace
        shifted = lam - xp.amax(lam, -1)[..., None]  # τ does not lose its digits to a large λ
        kept = shifted <= 0
        while True:
            count = kept.sum(-1)[..., None]
            tau = (xp.where(kept, shifted, 0).sum(-1)[..., None] - 1) / count
            above = kept & (shifted > tau)
            if not bool((kept & ~above).any()):
                return xp.clip(shifted - tau, 0, None)
            kept = above
