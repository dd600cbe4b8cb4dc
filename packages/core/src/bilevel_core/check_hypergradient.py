"""A hypergradient beside finite differences of f_T, for problems that nobody has a formula for."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any, final

from bilevel_core.abstract import Backend, Dynamics, Engine
from bilevel_core.arrays import dot, epsilon, norm, size
from bilevel_core.engines.reverse import Reverse
from bilevel_core.hypergradient import checked_run, run_engine
from bilevel_core.problem import Problem
from bilevel_core.tree import leaves, named_leaves, rebuild
from bilevel_core.types import Array, Tree

__all__ = ["CheckedDirection", "HypergradientCheck", "check_hypergradient"]

REVERSE = Reverse()
COARSEST = 1e-4
"""The largest machine epsilon with which differences mean anything: not half precision."""


@final
@dataclass(frozen=True, kw_only=True)
class CheckedDirection:
    """One leaf of λ, all of whose entries move by the same distance, up or down at random.

    Attributes:
        leaf: its path in λ, such as `λ['rate']`.
        derivative: what the engine says, ⟨∇f_T, v⟩ with v of entries ±1.
        difference: (f_T(λ + h v) - f_T(λ - h v)) / 2h.
        error: their distance, relative to the larger of ‖∇f_T‖ on the leaf and the difference. Over
            random v its root mean square is that of the error of the gradient.
    """

    leaf: str
    derivative: float
    difference: float
    error: float


@final
@dataclass(frozen=True, kw_only=True)
class HypergradientCheck:
    """What the directions came to.

    Attributes:
        directions: in the order of λ's leaves.
        error: the largest of theirs.
        tolerance: what is accepted.
    """

    directions: tuple[CheckedDirection, ...]
    error: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether every error is within the tolerance; one that is not a number is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        """Return a table."""
        width = max([4, *(len(row.leaf) for row in self.directions)])
        lines = [f"{'leaf':{width}} {'derivative':>14} {'difference':>14} {'error':>10}"]
        lines += [
            f"{row.leaf:{width}} {row.derivative:14.6g} {row.difference:14.6g} {row.error:10.1e}"
            for row in self.directions
        ]
        verdict = "passes" if self.passes else "FAILS"
        return "\n".join([*lines, f"{verdict}: {self.error:.1e}, accepted {self.tolerance:.1e}"])


def check_hypergradient(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    engine: Engine = REVERSE,
    directions: int = 3,
    tolerance: float | None = None,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare ∇f_T with central differences, leaf by leaf of λ.

    What it says of an engine holds for `outer_objective` and `solve_inner` too, which are
    differentiated by the same two maps.

    It shows what no error does: an outer objective that draws random numbers, a `detach` on the way
    of a part of λ, an engine that leaves a part of the derivative out (`Direct`, `Truncated`, and
    `Implicit` where T is short), an inner run that amplifies rounding. Look in float64; in float32
    the differences have two or three digits.

    Args:
        problem: as for `hypergradient`.
        dynamics: likewise.
        lam: λ, where it is looked.
        data: as for `hypergradient`.
        steps: T.
        engine: what is checked. Its own values of f_T are taken, which for `Exact` are f.
        directions: how many for each leaf, ≥ 1.
        tolerance: the largest error to accept; None takes the fourth root of the largest machine
            epsilon of λ, w and f_T, 1e-4 in float64 and 2 % in float32.
        seed: of the signs.

    Raises:
        ValueError: no direction is asked for, or numbers are of half precision; and whatever
            `hypergradient` raises.

    Cost: 2 hypergradients for each direction of each leaf, and one.

    Example:
        >>> import torch
        >>> from bilevel_core import Direct, GradientDescent
        >>> problem = Problem(
        ...     inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        ...     outer=lambda w, lam: 0.5 * w**2,
        ...     init=torch.zeros_like,
        ... )
        >>> lam, descent = torch.tensor(2.0, dtype=torch.float64), GradientDescent(step_size=0.5)
        >>> check_hypergradient(problem, descent, lam, steps=3).passes
        True
        >>> check_hypergradient(problem, descent, lam, steps=3, engine=Direct()).passes
        False
    """
    if directions < 1:
        raise ValueError(f"directions must be at least 1, found {directions}")
    instance = checked_run(problem, dynamics, lam, data, steps=steps, engine=engine)
    lam, backend = instance.lam, instance.backend
    found = run_engine(engine, instance)
    rounding = epsilon((lam, found.state, found.value), backend)
    if rounding > COARSEST:
        raise ValueError(
            f"a machine epsilon of {rounding:.1g} leaves no digit to a difference: check in "
            "float32 or, better, in float64"
        )
    draw = random.Random(seed)
    rows = []

    def value(at: Tree) -> float:
        return float(run_engine(engine, replace(instance, lam=at)).value)

    flat = leaves(lam)
    for index, (path, leaf) in enumerate(named_leaves(lam, "λ")):
        slope, count = leaves(found.grad)[index], size(leaf)
        for _ in range(directions if count else 0):
            v = _signs(backend, leaf, draw)
            # The difference is wrong by some h², and by rounding of some ε / h.
            h = rounding ** (1 / 3) * (norm(leaf, backend) / count**0.5 or 1.0)
            there, back = (
                value(rebuild(lam, [*flat[:index], leaf + step * v, *flat[index + 1 :]]))
                for step in (h, -h)
            )
            derivative, difference = float(dot(slope, v, backend)), (there - back) / (2 * h)
            length = max(norm(slope, backend), abs(difference))
            rows.append(
                CheckedDirection(
                    leaf=path,
                    derivative=derivative,
                    difference=difference,
                    error=abs(derivative - difference) / length if length else 0.0,
                )
            )
    return HypergradientCheck(
        directions=tuple(rows),
        error=max(
            (row.error for row in rows), key=lambda error: (math.isnan(error), error), default=0.0
        ),
        tolerance=rounding**0.25 if tolerance is None else tolerance,
    )


def _signs(backend: Backend, leaf: Array, draw: random.Random) -> Array:
    """Return an array like a leaf whose entries are 1 and -1 at random."""
    count = size(leaf)
    bits = f"{draw.getrandbits(count):0{count}b}"
    signs = [1.0 if bit == "1" else -1.0 for bit in bits]
    flat = backend.namespace.asarray(signs, dtype=leaf.dtype, device=leaf.device)
    return flat.reshape(leaf.shape)
