"""Reptile: the start follows where the tasks end."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from bilevel_core import Adam
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Batch
from bilevel_meta.methods.maml import Maml

__all__ = ["Reptile"]


@final
class Reptile(Maml):
    """θ ← θ + ε (mean over episodes of w_T - θ): a direction that is the gradient of no function.

    Its `loss` is ⟨stop(θ - w_T), θ⟩, whose value means nothing and whose gradient is θ - w_T; so
    plain gradient descent with the learning rate ε is the paper's step. w_T comes from T steps of
    Adam without momentum on mini-batches of all labelled images of an episode; there is no query
    set, and no derivative through the run. The paper keeps Adam's second moments from episode to
    episode; here every run begins afresh, so that `adapt` is a function of its images.

    Args:
        backbone: h.
        steps, test_steps, step_size: of the inner run.
        minibatch: examples a step.
        settings: as of `Maml`.

    Source: On First-Order Meta-Learning Algorithms (Nichol, Achiam, Schulman, 2018), Algorithm 2.
    """

    diet = Diet(way=5, shot=9, query=1, episodes=5)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        steps: int = 5,
        test_steps: int | None = 50,
        step_size: float = 1e-3,
        minibatch: int | None = 10,
        **settings: Any,
    ) -> None:
        super().__init__(
            backbone,
            steps=steps,
            test_steps=test_steps,
            minibatch=minibatch,
            offsets_move=True,
            dynamics=settings.pop("dynamics", None) or Adam(step_size=step_size, beta1=0.0),
            **settings,
        )

    def loss(self, batch: Batch) -> Tensor:
        """Return what has the gradient θ - mean w_T."""
        episodes = self.take(batch)
        self._check_way(episodes.way)
        images = episodes.united()
        with torch.no_grad():
            ends = self.solve_all(images.support, images.support_labels, episodes.way)
        total = episodes.support.new_zeros(())
        for name, theta in self.adapted.lam()["start"].items():
            total = total + ((theta.detach() - ends[name].mean(dim=0)) * theta).sum()
        return total
