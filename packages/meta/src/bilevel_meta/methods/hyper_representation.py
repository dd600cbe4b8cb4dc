"""Hyper-representation, the paper's own method; read this first.

A meta-batch of episodes is a bilevel problem (Eqs. 3, 4, 9 and 10 of the paper):

    λ   the representation: the backbone, and what fits heads on its features
    w   one linear head an episode
    L   cross-entropy of the heads on the support images
    E   mean cross-entropy of the heads on the query images, averaged over episodes; in training the
        labels may be smoothed

Heads are those of the optimum of L, of a strongly convex problem that is right for any number of
classes and images (`heads.HeadSolver`), or those after T steps from zero, as in the paper
(`heads.descend`). They never touch the backbone. So the backbone's features are ordinary nodes of
the graph, the inner problem is one more (`bilevel_models.heads`), and `loss(batch).backward()` is
Algorithm 1, with each image through the backbone once forward and once back, whatever T is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self, Unpack, cast

import torch
from torch import Tensor, nn

from bilevel_core import DivergenceError
from bilevel_meta.episodes import Batch, Episodes
from bilevel_meta.learner import Encoding, HeadLearner, Learner
from bilevel_models import Normalization, heads

__all__ = ["HyperRepresentation", "InnerLoop", "inner_of", "outer_loss"]


class InnerLoop(NamedTuple):
    """How heads are trained: T steps of size η, or, where T is None, to their optimum."""

    steps: int | None
    lr: float

    def __str__(self) -> str:
        """Return it for a message."""
        return "heads at their optimum" if self.steps is None else f"T = {self.steps}"


class HyperRepresentation(HeadLearner):
    """λ = (backbone, what fits heads), and heads at their optimum or after T steps from zero.

    Args:
        backbone: h, a module or its name.
        steps: T, inner steps; None solves the inner problem to its optimum.
        step_size: η, or where it starts.
        scale: s, the factor on the features, or where it starts.
        learn_step_size: whether η is part of λ.
        learn_scale: whether s is.
        label_smoothing: ε in [0, 1), see `outer_loss`.
        through: differentiate w_T too; otherwise ∇_λ w_T is taken as 0, what core calls `Direct`:
            the support features and η get the gradient 0.
        united: train and judge the heads on the support and query images together, D_val = D_tr.
        encoding: the other arguments of `HeadLearner`.

    Attributes:
        solver: what fits heads to their optimum, a part of λ; None where T steps do.
        log_lr, log_scale: log η and log s, which heads at their optimum do without.

    Raises:
        ValueError: as `HeadLearner`.

    Cost: of a loss and its gradient, the backbone's pass over the images forward and back, whatever
    T is, and the heads' T steps.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Algorithm 1 and sections 4 and 5.3.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        steps: int | None = None,
        step_size: float = 0.1,
        scale: float = 10.0,
        learn_step_size: bool = True,
        learn_scale: bool = True,
        label_smoothing: float = 0.0,
        through: bool = True,
        united: bool = False,
        **encoding: Unpack[Encoding],
    ) -> None:
        encoding.setdefault("unit_length", True)
        super().__init__(backbone, **encoding)
        self.steps, self.label_smoothing = steps, label_smoothing
        self.through, self.united = through, united
        descends = steps is not None
        log_lr, log_scale = (torch.tensor(math.log(x)) for x in (step_size, scale))
        self.log_lr = nn.Parameter(log_lr, requires_grad=learn_step_size and descends)
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_scale and descends)
        dim = cast("int", self.backbone.dim)
        self.solver = None if descends else heads.HeadSolver(dim)

    @property
    def inner(self) -> InnerLoop:
        """T, and η as it is now."""
        return InnerLoop(self.steps, float(self.log_lr.detach().exp()))

    @torch.no_grad()
    def set_lr(self, lr: float) -> None:
        """Make η another one."""
        self.log_lr.fill_(math.log(lr))

    def varied(
        self, *, normalization: Normalization | None = None, steps: int | None = None
    ) -> Self:
        """Return a learner of the same λ, which both share, with other choices beside it.

        Args:
            steps: T; None stays as it is.
            normalization: whose statistics; None stays as it is.
        """
        other = copy.copy(self)
        other.steps = self.steps if steps is None else steps
        other.normalization = normalization or self.normalization
        return other

    def fit_head(
        self, features: Tensor, labels: Tensor, way: int, inner: InnerLoop | None = None
    ) -> heads.Head:
        """Return one head an episode.

        Args:
            features: of the support images, (episodes, n, dim).
            labels: classes 0 … way-1, int64 (episodes, n).
            way: classes an episode.
            inner: other T and η than the learner's own.

        Raises:
            ValueError: the optimum is asked for, of a learner that was made for T steps.
            bilevel_core.DivergenceError: the heads are not finite, or grow without bound.
        """
        targets = heads.one_hot(labels, way, features)
        steps, step_size = (self.steps, self.log_lr.exp()) if inner is None else inner
        differentiable = torch.is_grad_enabled() and self.through
        if steps is None:
            if self.solver is None:
                raise ValueError("these heads take T steps: nothing is known for their optimum")
            with torch.set_grad_enabled(differentiable), _divergence():
                return self.solver.fit(features, targets)
        scale = self.log_scale.exp()
        with torch.set_grad_enabled(differentiable), _divergence():
            w = heads.descend(features, targets, steps=steps, step_size=step_size, scale=scale)
        return {**w, "scale": scale}  # with its graph, also where w has none

    def loss(self, batch: Batch) -> Tensor:
        """Return E(w_T(λ), λ), the mean over a meta-batch, as a scalar with its graph.

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        episodes = self.take(batch)
        support, query = self.encoded(episodes)
        labels = _together(episodes) if self.united else episodes.support_labels
        head = self.fit_head(support, labels, episodes.way)
        asked = labels if self.united else episodes.query_labels
        value = self.judge(heads.logits(head, query), asked)
        if not self.through:  # what fits heads has the gradient 0, and no wrapper looks in vain
            unseen = (self.log_lr,) if self.solver is None else tuple(self.solver.parameters())
            value = value + 0.0 * torch.stack(unseen).sum()
        return value

    def encoded(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Return the features that heads are trained on, and those that they are judged on."""
        if self.united:
            (support,) = self.encoder(episodes.united().support, training=self.training)
            query = support
        else:
            support, query = self.encoder(episodes.support, episodes.query, training=self.training)
        if self.training and self.solver is not None:
            self.solver.track(support)
        return support, query

    def judge(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return `outer_loss`; keep the accuracy.

        Raises:
            bilevel_core.DivergenceError: it is not finite.
        """
        self.accuracy = heads.accuracy(scores.detach(), labels).mean()
        value = outer_loss(scores, labels, self.label_smoothing)
        if not math.isfinite(loss := float(value.detach())):
            raise DivergenceError(
                f"the loss on the query images is {loss} with {self.inner}, although the heads are "
                "finite: lower the step size, or look for features that are not finite"
            )
        return value

    @torch.no_grad()
    def accuracies(self, batch: Batch) -> Tensor:
        """Return the fraction of query images classified right, one an episode, (batch,).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        episodes = self.take(batch)
        support, query = self.encoder(episodes.support, episodes.query, training=False)
        head = self.fit_head(support, episodes.support_labels, episodes.way)
        return heads.accuracy(heads.logits(head, query), episodes.query_labels)


def inner_of(learner: Learner) -> InnerLoop:
    """Return a learner's T and η; of other kinds T alone, or 0, as steps have their own sizes."""
    if isinstance(learner, HyperRepresentation):
        return learner.inner
    return InnerLoop(int(getattr(learner, "steps", 0)), 0.0)


def outer_loss(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return E = (1-ε) mean -log p_y + ε mean -log p_c, the mean over c that of all classes.

    Args:
        scores: logits of the query images, (batch, way*query, way).
        labels: y, (batch, way*query).
        smoothing: ε.

    Source: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2016),
    section 7.
    """
    loss = heads.cross_entropy(scores, labels).mean()
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * scores.log_softmax(dim=-1).mean()


def _together(episodes: Episodes) -> Tensor:
    return torch.cat((episodes.support_labels, episodes.query_labels), dim=1)


@contextmanager
def _divergence() -> Iterator[None]:
    """Let the heads' divergence be core's, so that callers know one."""
    try:
        yield
    except heads.HeadDivergenceError as error:
        raise DivergenceError(str(error)) from error
