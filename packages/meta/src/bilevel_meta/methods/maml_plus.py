"""MAML++: what makes MAML train steadily."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from bilevel_meta.adaptation import StepSizes, Weights
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Batch, Episodes
from bilevel_meta.methods.maml import AdaptedClassifier, Maml
from bilevel_models import EACH_SET, Normalization

__all__ = ["MamlPlus"]


@final
class MamlPlus(Maml):
    """MAML with a learned step size a tensor and step, offsets a step, and a loss at every step.

    E = Σ_t v_t E(w_t): v is 1/T each at first and goes linearly, over `anneal` meta-batches, to
    0.03/T for all steps but the last, which has the rest. The offsets of the normalisation are
    others at each step and not moved by the inner loop. (Running statistics a step, which the paper
    speaks of, are without effect in its code.)

    Args:
        backbone: h.
        way: classes an episode.
        steps: T.
        anneal: meta-batches until v rests.
        settings: as of `Maml`.

    Cost: of a loss, (T Q + 3 T S) / (Q + S) passes while v has weight on every step.

    Source: How to Train Your MAML (Antoniou, Edwards, Storkey, 2019), section 4.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=2)
    seen: Tensor

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int,
        steps: int = 5,
        anneal: int = 5000,
        **settings: Any,
    ) -> None:
        super().__init__(
            backbone, way=way, steps=steps, step_sizes=StepSizes.LEAF_AND_STEP, **settings
        )
        self.anneal = anneal
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        weights = dict(self.adapted.network.named_parameters())
        # One row a step, and one for the weights that the query images see.
        self.offsets = nn.ParameterList(
            weights[name].detach().repeat(steps + 1, 1) for name in self.adapted.offsets
        )
        for name in self.adapted.offsets:
            weights[name].requires_grad_(False)

    def shares(self) -> list[float]:
        """Return v_1 … v_T; their sum is 1."""
        steps = self.adapted.adaptation.steps
        passed = min(1.0, int(self.seen) / max(1, self.anneal))
        early = max(1.0 - passed, 0.03) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def offsets_at(self, t: int) -> Weights:
        """Return the offsets after t steps; beyond the trained T, those of the last."""
        rows = zip(self.adapted.offsets, self.offsets, strict=True)
        return {name: leaf[min(t, len(leaf) - 1)] for name, leaf in rows}

    def path(self, images: Tensor, labels: Tensor) -> list[Weights]:
        """Return w_1 … w_T of one episode or of several, each with the offsets of its step."""
        lam, found = self.adapted.lam(), []
        w, data = lam["start"], {"x": (images, EACH_SET), "y": labels}
        several = images.shape[:-4]
        w = {name: leaf.expand(*several, *leaf.shape) for name, leaf in w.items()}
        for t in range(self.steps):
            # Derivatives pass from step to step, as each is a function of the last.
            here = {
                "start": w,
                "rest": {**lam["rest"], **self.offsets_at(t)},
                "sizes": {
                    name: eta[min(t, len(eta) - 1)][None] for name, eta in lam["sizes"].items()
                },
            }
            w = self.adapted.solve(data, steps=1, lam=here)
            after = self.offsets_at(t + 1).items()
            found.append(w | {name: leaf.expand(*several, *leaf.shape) for name, leaf in after})
        return found

    def solve(self, images: Tensor, labels: Tensor, way: int) -> Weights:
        """Return w_T of one episode, with its offsets."""
        del way  # that of the learned last layer
        return self.path(images, labels)[-1]

    def loss(self, batch: Batch) -> Tensor:
        """Return Σ_t v_t E(w_t), and count the meta-batch in training."""
        if not self.training:
            return super().loss(batch)
        episodes = self.take(batch)
        self._check_way(episodes.way)
        paths = self._paths(episodes)
        losses = [self._query_loss(w, episodes) for w in paths]
        self.seen += 1
        shared = zip(self.shares(), losses, strict=True)
        return torch.stack([share * loss for share, loss in shared]).sum()

    def _paths(self, episodes: Episodes) -> list[Weights]:
        """Return w_1 … w_T, each with an axis over episodes."""
        images, labels = episodes.support, episodes.support_labels
        if self.goes_together(images):
            return self.path(images, labels)
        each = [self.path(*one) for one in zip(images, labels, strict=True)]
        return [
            {name: torch.stack([w[name] for w in step]) for name in step[0]}
            for step in zip(*each, strict=True)
        ]

    def _query_loss(self, w: Weights, episodes: Episodes) -> Tensor:
        by_support = self.normalization is Normalization.SUPPORT
        reference = episodes.support if by_support else None
        scores = AdaptedClassifier(self.adapted, w, reference).logits(episodes.query)
        return self.judge(scores, episodes.query_labels)
