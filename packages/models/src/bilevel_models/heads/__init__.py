"""Linear classifiers on features, one an episode, all of a meta-batch at once.

A head is a dict {"weight": (batch, dim, way), "bias": (batch, 1, way)}: the inner variable w of a
hyper-representation. Its logits on features h, with a scale s, are s h W + b. What to use when:

| to train heads by | function | gradients |
| --- | --- | --- |
| T steps of gradient descent or heavy ball, cross-entropy or squared loss | `descend` | once |
| the same for the squared loss, from zero, when T is large | `closed_form` | once |
| the limit of that: ridge regression | `ridge` | any order |
| anything else | `zeros`, `logits`, `cross_entropy` with an engine of one's own | the engine's |

All three take support features (batch, n, dim) and targets (batch, n, way) and return a head that
ordinary autograd differentiates in all that was passed: features, targets, step size, scale, decay,
momentum and initial weights. So a hyper-iteration is

    head = heads.descend(support, targets, steps=T, step_size=eta, scale=s)
    loss = heads.cross_entropy(heads.logits(head, query, s), labels).mean()
    loss.backward()

and an evaluation is the same under `torch.no_grad()`, in the memory of one step. There is no graph
over the T steps: the adjoint is derived by hand (`unrolled.py`). Two forms give the same numbers, and
the cheaper is taken: steps on the n x n Gram matrix of the support features, whose cost and memory
know nothing of dim, or, for more images than twice dim, on the weights (`dual.py`).

The inner loss is a mean over the n support images, not a sum; the squared loss has the factor ½;
weight decay (ρ/2)‖w‖² is on the bias too, without which the Gram form would not be exact. Hence
descent on the squared loss is stable for η < 2 / (λ_max(K)/n + ρ), K = s² h hᵀ + 1, and that on
cross-entropy, which curves at most half as much, for η < 2 / (λ_max(K)/(2n) + ρ). A run that
diverges all the same raises `HeadDivergenceError`, an `ArithmeticError`.

Within `torch.autocast` the three train in float64 and return the features' dtype (`autocast.py`);
`logits` is a product like any other there.
"""

from bilevel_models.heads.checks import HeadDivergenceError
from bilevel_models.heads.closed_form import closed_form
from bilevel_models.heads.descent import descend
from bilevel_models.heads.dual import Form
from bilevel_models.heads.linear import (
    Head,
    accuracy,
    cross_entropy,
    logits,
    one_hot,
    squared_error,
    zeros,
)
from bilevel_models.heads.losses import CROSS_ENTROPY, SQUARED, Loss
from bilevel_models.heads.ridge import ridge

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED",
    "Form",
    "Head",
    "HeadDivergenceError",
    "Loss",
    "accuracy",
    "closed_form",
    "cross_entropy",
    "descend",
    "logits",
    "one_hot",
    "ridge",
    "squared_error",
    "zeros",
]
