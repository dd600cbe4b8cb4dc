"""The rows of the paper's Table 4: what a meta-batch does to the representation.

They differ in training alone. Afterwards each is a representation on which heads are trained with T
steps on the support images of an episode.

| method | a training episode | gradient of λ | backbone, forward and backward |
| --- | --- | --- | --- |
| hyper-representation | support and query apart | ∇f_T, through the T steps | once |
| bilevel-train | one set, for both | ∇f_T, through the T steps | once |
| approx | support and query apart | at w_T, ∇_λ w_T taken as 0 | once |
| approx-train | one set, for both | at w_T, ∇_λ w_T taken as 0 | once |
| classic-train | one set | of the loss that w and λ share, T steps of both | T times |
| multiclass | images with their class among all | of one classifier of all classes | once |

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et al.,
2018), section 5.3 and Table 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_meta.episodes import Batch
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import heads

__all__ = ["VARIANTS", "ClassicTrain", "Multiclass"]


@final
class ClassicTrain(HyperRepresentation):
    """Multitask learning: representation and heads descend together.

    A meta-batch is worth T outer steps on

    f̂(λ, w¹, …, w^B) = (1/B) Σ_j L(w^j, λ, D_tr^j),
    w^j ← w^j - η B ∇_{w^j} f̂(λ, w),  from w^j = 0.

    D_tr are the support and the query images of an episode together. Whoever iterates over `losses`
    moves λ; both moves begin at the same (λ, w). The paper keeps a mini-batch for 5 gradient
    descent iterations, which is T in its experiments. The first step has ∇_λ f̂ = 0, as the heads
    are 0. The inner step size is not in f̂ and stays what it is. Smoothed labels are in all of f̂.

    Cost: the backbone's forward and backward pass over the images, T times, and T outer steps: as
    much as T hyper-iterations of the other methods.

    Source: Learning Internal Representations (Baxter, 1995); Franceschi et al. (2018), section 5.3.
    """

    def loss(self, batch: Batch) -> Tensor:
        """Refuse: a meta-batch is worth T losses.

        Raises:
            NotImplementedError: always.
        """
        del batch
        raise NotImplementedError(
            "classic-train takes T outer steps on a meta-batch: iterate over losses(batch), and "
            "step after each"
        )

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """Yield f̂ before each of the T steps that move λ and the heads."""
        if self.steps is None:
            raise ValueError("classic-train moves λ and heads T times: give steps")
        episodes = self.take(batch).united()
        w: heads.Head | None = None
        for _ in range(self.steps):
            (features,) = self.encoder(episodes.support, training=self.training)
            w = w or heads.zeros(features.detach(), episodes.way)
            w = {name: leaf.detach().requires_grad_() for name, leaf in w.items()}
            scores = heads.logits({**w, "scale": self.log_scale.exp()}, features)
            value = self.judge(scores, episodes.support_labels)
            grads = torch.autograd.grad(value, list(w.values()), retain_graph=True)
            # The loss is a mean over episodes, and each head descends on its own.
            size = self.log_lr.detach().exp() * len(features)
            w = {name: w[name].detach() - size * g for name, g in zip(w, grads, strict=True)}
            yield value


@final
class Multiclass(HyperRepresentation):
    """One classifier of all training classes, whose linear outputs are kept.

    The loss is the mean of -log softmax(h(x))_c over the images of a meta-batch, where h(x) are the
    network's linear outputs, one a training class (`bilevel_models.backbones.linear_output`), and c
    is the image's class among them. Every class is as probable as every other, and so are its
    images: an unbiased estimate of that over the training classes, with the least variance where an
    episode has all of them.

    The features of validation and test are h(x) too; dividing them by their length is left to
    them. Inner step size and scale are not in the loss and stay what they are.

    Source: Franceschi et al. (2018), section 5.3.
    """

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over support and query images.

        Raises:
            ValueError: the episodes do not say which classes they have.
        """
        given = self.take(batch)
        if given.classes is None:
            raise ValueError(
                "the episodes do not say which classes they have: give Episodes.classes"
            )
        episodes = given.united()
        encoder = replace(self.encoder, unit_length=False)
        (scores,) = encoder(episodes.support, training=self.training)
        if self.training and self.solver is not None:
            unit = functional.normalize(scores, dim=-1) if self.unit_length else scores
            self.solver.track(unit)
        return self.judge(scores, given.classes.gather(1, episodes.support_labels))


VARIANTS: Mapping[str, Callable[..., HyperRepresentation]] = MappingProxyType(
    {
        "hyper-representation": HyperRepresentation,
        "approx": partial(HyperRepresentation, through=False),
        "approx-train": partial(HyperRepresentation, through=False, united=True),
        "bilevel-train": partial(HyperRepresentation, united=True),
        "classic-train": ClassicTrain,
        "multiclass": Multiclass,
    }
)
"""By the value of the configuration's `method`."""
