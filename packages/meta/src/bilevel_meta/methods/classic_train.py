"""Classic-train: multitask learning, representation and heads descending together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch

from bilevel_core import DivergenceError
from bilevel_meta.episodes import Episodes
from bilevel_meta.inner_problem import outer_loss
from bilevel_meta.task import MetaTask, Outcome
from bilevel_models import heads

__all__ = ["classic_train"]


def classic_train(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield ∇_λ f̂ of T steps on a meta-batch that move λ and the heads at the same time.

    f̂(λ, w¹, …, w^B) = (1/B) Σ_j L(w^j, λ, D_tr^j),
    w^j ← w^j - η B ∇_{w^j} f̂(λ, w),  from w^j = 0.

    D_tr are the support and the query images of an episode together. Whoever iterates moves λ;
    both moves begin at the same (λ, w). The paper keeps a mini-batch for 5 gradient descent
    iterations, which is T in its experiments. The first step has ∇_λ f̂ = 0, as the heads are 0.
    The inner step size is not in f̂ and stays what it is. Smoothed labels are in all of f̂.

    Cost: the backbone's forward and backward pass over the images, T times, and T outer steps: as
    much as T hyper-iterations of the other methods.

    Source: Learning Internal Representations (Baxter, 1995); Bilevel Programming for Hyperparameter
    Optimization and Meta-Learning (Franceschi et al., 2018), section 5.3.
    """
    parts = [_Part(task, part) for part in episodes.united().parts(task.parts)]
    for _ in range(task.steps):
        yield task.accumulated(part.step() for part in parts)


@final
@dataclass
class _Part:
    """A part of the meta-batch, and its heads while they are trained."""

    task: MetaTask
    episodes: Episodes
    head: heads.Head | None = None

    def step(self) -> Outcome:
        """Add the part's share of ∇_λ f̂ to the `grad`, and move its heads."""
        task, labels = self.task, self.episodes.support_labels
        features, pull_back = task.encoder.encode_set(self.episodes.support, training=True)
        head = self.head or heads.zeros(features, self.episodes.way)
        leaves = {"features": features, "log_scale": task.model.log_scale.detach(), **head}
        for leaf in leaves.values():
            leaf.requires_grad_()
        scores = heads.logits({**head, "scale": leaves["log_scale"].exp()}, features)
        value = outer_loss(scores, labels, task.label_smoothing)
        loss = float(value.detach())
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss of representation and heads is {loss}: lower the step size"
            )
        grads = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
        pull_back(grads["features"] / task.parts)
        task.add_scalar("log_scale", grads["log_scale"] / task.parts)
        # The loss is a mean over episodes, and each head descends on its own.
        size = task.model.log_lr.detach().exp() * len(features)
        self.head = {name: leaf.detach() - size * grads[name] for name, leaf in head.items()}
        accuracy = heads.accuracy(scores.detach(), labels).mean()
        return Outcome(loss=loss, accuracy=float(accuracy))
