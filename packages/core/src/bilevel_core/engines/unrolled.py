"""Reverse mode through one graph of the whole inner run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from bilevel_core.arrays import zeros
from bilevel_core.divergence import diagnose
from bilevel_core.flow import Ends, Flow, Instance, loop_ends, run_ends
from bilevel_core.results import Pulled, Solution
from bilevel_core.types import Tree

__all__ = ["Unrolled"]


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The framework's own reverse mode over all T steps.

    `solve_inner` then is ordinary code of the framework: w_T can be differentiated as often as one
    likes, and in what the objectives capture too. In PyTorch steps may draw at random (dropout):
    the one graph holds what was drawn, so f_T and ∇f_T are those of that run.

    Cost: time of T steps and their derivatives, no step run twice; memory of the whole graph,
    which grows with T times the size of a step's intermediate results.
    """

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps and keep their graph, as the way back through it."""
        if not keep:
            ends = run_ends(instance)
            return Solution(state=ends[1][-1], result=diagnose(instance, ends))
        backend = instance.backend
        ends, pull_back = backend.vjp(
            _Run(instance.flow, instance.steps),
            instance.lam,
            instance.start,
            fixed=(instance.data,),
        )
        ends = backend.detach(ends)
        return Solution(
            state=ends[1][-1], memory=(pull_back, ends), result=diagnose(instance, ends)
        )

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Go back through the graph."""
        backend = instance.backend
        pull_back, (head, tail) = solution.memory
        _, pull_params = backend.vjp(instance.flow.dynamics.params, tail[-1])
        (alpha,) = pull_params(cotangent)
        nothing = zeros((head, tail[:-1]), backend)
        lam, start = backend.detach(pull_back((nothing[0], [*nothing[1], alpha])))
        return Pulled(lam=lam, start=start)

    def differentiable_state(self, instance: Instance) -> Tree:
        """Return s_T with its derivatives, by the framework's own means."""
        run = _Run(instance.flow, instance.steps)
        _, tail = run(instance.lam, instance.start, instance.data)
        return tail[-1]


@final
@dataclass(frozen=True)
class _Run:
    """λ and the start to the states at either end of the run."""

    flow: Flow
    steps: int

    def __call__(self, lam: Tree, start: Tree, data: Any) -> Ends:
        state = self.flow.start(lam, start, data)
        return loop_ends(self.flow.backend, _Step(self.flow), state, (lam, data), self.steps)


@final
@dataclass(frozen=True)
class _Step:
    """The body of the loop, which keeps the derivatives."""

    flow: Flow

    def __call__(self, state: Tree, fixed: tuple[Tree, Any], t: int) -> Tree:
        lam, data = fixed
        return self.flow.step(state, lam, self.flow.seen(t, data), t)
