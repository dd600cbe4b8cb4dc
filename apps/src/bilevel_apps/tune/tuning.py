"""What `bilevel-tune` optimises, as data; no work is done here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, final

from bilevel_core import Problem, Reverse
from bilevel_core.abstract import Dynamics, Engine
from bilevel_core.types import Tree

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

__all__ = ["Figures", "HistoryRow", "Tuning"]

Figures: TypeAlias = Mapping[str, float]
"""Held-out figures by name, such as {"test error %": 4.8}; less is better."""


@final
@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """One hyper-iteration.

    Attributes:
        index: its number, from 0.
        value: f_T(λ); in an online run E(w_t, λ) at the step of the update.
        grad_norm: ‖∇f_T(λ)‖.
        seconds: since the run began.
        lam: λ by name, at which value and gradient were taken; None where it is a large tree.
    """

    index: int
    value: float
    grad_norm: float
    seconds: float
    lam: Mapping[str, Any] | None


@final
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A bilevel problem with all that it takes to solve it and to judge the solution.

    Attributes:
        problem: Φ_0, the inner and the outer objective; or a function of the hyper-iteration that
            returns them.
        dynamics: the inner optimiser.
        lam: λ, where it starts.
        steps: T, inner steps.
        optimizer: makes the framework's optimiser of λ, as for `bilevel_core.minimize`.
        outer_steps: hyper-iterations, at most; an online run does not look at it.
        engine: how hypergradients are computed.
        reparametrize: sets by the place in λ, kept by free coordinates.
        project: sets by the place in λ, kept by projection.
        stop: a stopping rule, such as `bilevel_core.Patience(steps=20)`.
        online: update λ during one inner run of `steps`, instead of between runs.
        every: inner steps between two updates of an online run.
        report: `report(lam, w)` returns figures on data that the tuning never saw, for the start
            and for the tuned λ.
        baseline: returns the same figures of counterparts, by the counterpart's name.
        draw: `draw(figure, lam, records)` draws the tuned λ beside the history.
        title: one line about it.

    Raises:
        ValueError: `outer_steps` or `every` is below 1, or an online run has no update.
        TypeError: an online run has a function of the hyper-iteration as its problem.
    """

    problem: Problem | Callable[[int], Problem]
    dynamics: Dynamics
    lam: Tree
    steps: int
    optimizer: Callable[..., Any]
    outer_steps: int = 100
    engine: Engine = field(default_factory=Reverse)
    reparametrize: Tree | None = None
    project: Tree | None = None
    stop: Callable[..., bool] | None = None
    online: bool = False
    every: int = 1
    report: Callable[[Tree, Tree], Figures] | None = None
    baseline: Callable[[], Mapping[str, Figures]] | None = None
    draw: Callable[[SubFigure, Tree, Sequence[HistoryRow]], None] | None = None
    title: str = ""

    def __post_init__(self) -> None:
        for name in ("outer_steps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.online:
            return
        if self.steps < self.every:
            raise ValueError(
                f"an online run of {self.steps} steps with an update every {self.every} has none: "
                "take more steps"
            )
        if not isinstance(self.problem, Problem):
            raise TypeError(
                "an online run is one inner run of one problem, but the problem is a function of "
                "the hyper-iteration: give a Problem, or an engine other than online"
            )
