"""Linear classifiers on features, one per episode, all of a meta-batch at once.

A head is a dict {"weight": (batch, dim, way), "bias": (batch, 1, way)}: the inner variable w of a
hyper-representation. One that was trained on s h carries s as its "scale": `logits(head, h)` is all
that one asks of it. What to use when:

| to get heads | function | gradients |
| --- | --- | --- |
| for any task: any way, any and unequal shots, calibrated | `HeadSolver`, a module | once |
| at the optimum of a balanced softmax regression | `solve` | once |
| that are class means, without training | `class_means` | any order |
| by T steps of gradient descent or heavy ball, as in the paper | `descend` | once |
| the same for the squared loss, from zero, when T is large | `closed_form` | once |
| the limit of that: ridge regression | `ridge` | any order |
| in any other way | `zeros`, `logits`, `cross_entropy` with an engine of one's own | the engine's |

All take support features (batch, n, dim) and targets (batch, n, way) and return a head that
ordinary autograd differentiates in all that was passed. So a hyper-iteration is

    head = solver.fit_labels(support, labels, way)          # or heads.descend(support, targets, …)
    loss = heads.cross_entropy(heads.logits(head, query), query_labels).mean()
    loss.backward()

and an evaluation is the same under `torch.no_grad()`. There is no graph over inner steps: the
adjoint of T steps is derived by hand (`unrolled.py`), that of an optimum is one linear system
(`optimum.py`). Two forms give the same numbers, and the cheaper is taken: the n x n Gram matrix of
the support features, whose cost and memory know nothing of dim, or, for many images, the weights
(`linear.py`, `optimum.py`).

T steps are right for the task that their step size was made for. `descend` minimises a mean over
the n support images, so that a class with more images outweighs one with fewer, and a step size
that was learned for one image a class overshoots with ten. `HeadSolver` has neither fault.

In `descend`, `closed_form` and `ridge` the squared loss has the factor ½; weight decay (ρ/2)‖w‖²
is on the bias too, without which the Gram form would not be exact. Hence descent on the squared
loss is stable for η < 2 / (λ_max(K)/n + ρ), K = s² h hᵀ + 1, and that on cross-entropy, which
curves at most half as much, for η < 2 / (λ_max(K)/(2n) + ρ). A run that diverges all the same
raises `HeadDivergenceError`, an `ArithmeticError`.

Within `torch.autocast` all train in float64 and return the features' dtype (`checks.py`);
`logits` is a product like any other there.
"""

from bilevel_models.heads.checks import HeadDivergenceError
from bilevel_models.heads.closed_form import closed_form
from bilevel_models.heads.descent import descend
from bilevel_models.heads.linear import (
    Form,
    Head,
    accuracy,
    cross_entropy,
    logits,
    one_hot,
    squared_error,
    zeros,
)
from bilevel_models.heads.optimum import solve
from bilevel_models.heads.ridge import ridge
from bilevel_models.heads.solver import HeadSolver, class_means
from bilevel_models.heads.unrolled import CROSS_ENTROPY, SQUARED, Loss

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED",
    "Form",
    "Head",
    "HeadDivergenceError",
    "HeadSolver",
    "Loss",
    "accuracy",
    "class_means",
    "closed_form",
    "cross_entropy",
    "descend",
    "logits",
    "one_hot",
    "ridge",
    "solve",
    "squared_error",
    "zeros",
]
