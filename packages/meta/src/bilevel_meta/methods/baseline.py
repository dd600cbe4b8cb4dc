"""Baseline and Baseline++: a classifier of all training classes, then a new head."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.class_means import class_means
from bilevel_meta.learner import Encoding
from bilevel_meta.methods.pretrained import Pretrained
from bilevel_models import heads

__all__ = ["Baseline", "BaselinePlus"]


@final
class Baseline(Pretrained):
    """A linear head on frozen features, by gradient descent with momentum from zero.

    The paper takes 100 epochs in mini-batches of four from a random head; here every step sees all
    support images, so that the head is a function of them.

    Args:
        backbone, classes, encoding: as of `Pretrained`.
        steps: T.
        step_size: η.
        momentum: μ.
        decay: ρ.

    Source: A Closer Look at Few-shot Classification (Chen et al., 2019), section 3.2.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        classes: int,
        steps: int = 100,
        step_size: float = 0.01,
        momentum: float = 0.9,
        decay: float = 1e-3,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, classes=classes, **encoding)
        self.output = nn.Linear(self.dim, classes)
        self.steps, self.step_size = steps, step_size
        self.momentum, self.decay = momentum, decay

    def outputs(self, features: Tensor) -> Tensor:
        """Return the linear outputs."""
        scores: Tensor = self.output(features)
        return scores

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the heads after T steps."""
        return heads.descend(
            features,
            heads.one_hot(labels, way, features),
            steps=self.steps,
            step_size=self.step_size,
            momentum=self.momentum,
            decay=self.decay,
        )


@final
class BaselinePlus(Pretrained):
    """The same with cosine heads: logits s ⟨h, w_c⟩ / (‖h‖ ‖w_c‖), in training and after.

    The new head starts at the class means and takes T steps of gradient descent on the support
    images. (The paper's starts at random, and keeps a length for each class.)

    Args:
        backbone, classes, encoding: as of `Pretrained`.
        scale: s; None takes the paper's, 2, and 10 for more than 200 training classes.
        steps: T.
        step_size: η.

    Source: A Closer Look at Few-shot Classification (Chen et al., 2019), section 3.2.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        classes: int,
        scale: float | None = None,
        steps: int = 100,
        step_size: float = 0.1,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, classes=classes, **encoding)
        self.output = nn.Linear(self.dim, classes, bias=False)
        self.scale = scale or (2.0 if classes <= 200 else 10.0)
        self.steps, self.step_size = steps, step_size

    def outputs(self, features: Tensor) -> Tensor:
        """Return the cosines with each class's weights, times s."""
        return self.scale * functional.normalize(features, dim=-1) @ _unit(self.output.weight.mT)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Cosine:
        """Return the weights after T steps, ∂L/∂w written out so that λ can have a gradient."""
        h, y = functional.normalize(features, dim=-1), heads.one_hot(labels, way, features)
        w = class_means(h, labels, way).mT
        for _ in range(self.steps):
            u, length = _unit(w), w.norm(dim=1, keepdim=True).clamp(min=1e-12)
            slope = self.scale * h.mT @ ((self.scale * h @ u).softmax(dim=-1) - y) / h.shape[1]
            w = w - self.step_size * (slope - u * (u * slope).sum(dim=1, keepdim=True)) / length
        return _Cosine(self.scale * _unit(w))


def _unit(weights: Tensor) -> Tensor:
    """Return weights (…, dim, classes) of length one each class."""
    return functional.normalize(weights, dim=-2)


@final
class _Cosine:
    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def logits(self, features: Tensor) -> Tensor:
        return torch.bmm(functional.normalize(features, dim=-1), self.weights)
