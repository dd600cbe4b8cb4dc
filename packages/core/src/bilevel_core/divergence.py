"""How a failed inner run is told from a good one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bilevel_core.arrays import distance, epsilon, norm, root_epsilon
from bilevel_core.flow import Ends, Instance, KnownGradient
from bilevel_core.results import Code, Result
from bilevel_core.types import Tree

__all__ = ["diagnose", "repeated"]

LEAST_EPSILON = 2.0**-23
"""Of float32. Bounds made of a coarser one would call any growth by a factor of 100 a failure."""


def diagnose(instance: Instance, ends: Ends) -> Result:
    """Judge an inner run from its ends: finite, and not growing without bound.

    A run counts as growing when its last step is 1/ε times longer than its first one, and than the
    same step taken from s_0, which a step size that warms up lengthens as well (ε: machine
    epsilon, that of float32 in half precision): nothing of where it started is left in its digits,
    so its derivative is noise. A run on the way to divergence passes this bound long before it
    overflows.

    Where a state is not finite, the inner gradient at the state before it tells an objective that
    is not defined there (`NOT_DEFINED`) from a step that is too long: the former has NaN while no
    step has been 1000 times longer than the first.

    Cost: three norms for a good run, and a step where its last one is long. A failed one is run
    again, to find the step.
    """
    head, tail = ends
    backend, steps = instance.backend, instance.steps
    if not backend.is_concrete(ends):
        return Result(code=Code.UNCHECKED)
    limit = 1.0 / min(epsilon(head[0], backend), LEAST_EPSILON)

    def stride(pair: Sequence[Tree]) -> float:
        return distance(pair[1], pair[0], backend) if len(pair) > 1 else 0.0

    def from_start(t: int) -> float:
        return stride((head[0], backend.detach(instance.step(head[0], t))))

    first = stride(head)

    def failure(pair: Sequence[Tree], t: int) -> Code:
        if not math.isfinite(norm(pair[-1], backend)):
            return Code.NOT_FINITE
        if t > 1 and 0 < first * limit < stride(pair) and from_start(t) * limit < stride(pair):
            return Code.GROWING
        return Code.SUCCESS

    if failure(tail, steps) is Code.SUCCESS:
        return Result()
    before, state, longest = head[0], head[0], first
    for t in range(steps + 1):
        if t > 0:
            before, state = state, backend.detach(instance.step(state, t))
        code = failure((before, state), t)
        tame = not longest > 1000 * first  # so too where the first step is not finite
        if code is Code.NOT_FINITE and tame and _undefined(instance, before, t):
            code = Code.NOT_DEFINED
        if code is not Code.SUCCESS:
            return Result(code=code, step=t)
        longest = max(longest, stride((before, state)))
    # The run passed when repeated: its steps are not a function of their arguments alone.
    return Result(code=failure(tail, steps), step=steps)


def _undefined(instance: Instance, state: Tree, t: int) -> bool:
    """Say whether ∇L, where step t asks for it, is not finite although w is, and s_{t-1} too."""
    flow, backend = instance.flow, instance.backend
    if t == 0 or not math.isfinite(norm(state, backend)):
        return False
    gradient, found = flow.slope(instance.lam, flow.seen(t, instance.data)), []

    def watched(w: Tree) -> Tree:
        slope = gradient(w)
        found.append(math.isfinite(norm(w, backend)) and not math.isfinite(norm(slope, backend)))
        return slope

    flow.dynamics.step(KnownGradient(watched, instance.data), state, instance.lam, t)
    return any(found)


def repeated(instance: Instance, ends: Ends, gap: float) -> Result:
    """Judge a run that was repeated in part and then was `gap` away from itself at the most.

    √ε of the longer one of its first and last steps is accepted: on a GPU the same sum may be
    rounded otherwise each time.
    """
    if gap == 0:
        return Result()
    backend = instance.backend
    strides = [distance(pair[-1], pair[0], backend) for pair in ends]
    if gap <= root_epsilon(ends[0][0], backend) * max(strides):
        return Result()
    return Result(code=Code.NOT_REPEATED, measured=gap)
