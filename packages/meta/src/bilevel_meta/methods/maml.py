"""MAML and its kin: all weights move, from a learned start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_core import (
    Adam,
    Checkpointed,
    ConjugateGradient,
    Dynamics,
    Engine,
    GradientDescent,
    Implicit,
    Reverse,
    Unrolled,
)
from bilevel_meta.adaptation import (
    Adaptation,
    AdaptedNetwork,
    StepSizes,
    Weights,
    warn_beyond,
)
from bilevel_meta.diet import Diet
from bilevel_meta.each_task import each_task, pays_to_vectorise
from bilevel_meta.learner import Learner, named_backbone
from bilevel_models import EACH_SET, Encoder, Normalization, Statistics

__all__ = ["Boil", "FirstOrderMaml", "ImplicitMaml", "Maml", "MetaSgd"]

CHUNK = 16
"""Episodes at once where they are taken together: more do not make a GPU faster by much."""

IMAGES = 32
"""Support images at once where weights of their own have no loop: their patches fit a cache."""


class _TakesEach(Protocol):
    """A backbone that passes several tasks at once, each with its weights, as `ConvNet` does."""

    @property
    def has_forward_each(self) -> bool: ...

    def forward_each(self, images: Tensor) -> Tensor: ...


def support_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of one task's logits, or the sum of the means of several."""
    if scores.ndim == 2:
        return functional.cross_entropy(scores, labels)
    total = functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
    return len(scores) * total


@final
class WithHead(nn.Module):
    """A backbone with a linear layer on its features.

    Args:
        backbone: h.
        way: outputs; the layer is zero where they are to be chosen by the episode.
    """

    def __init__(self, backbone: nn.Module, way: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(cast("int", backbone.dim), way)

    def forward(self, images: Tensor, statistics: Statistics, once: bool = False) -> Tensor:
        """Return logits (n, way); `once` says that only first derivatives will be asked for.

        Of images (tasks, n, …), logits (tasks, n, way), all tasks at once: weights then may have an
        axis over tasks.
        """
        if images.ndim == 5:
            features = cast("_TakesEach", self.backbone).forward_each(images)
            weight, bias = self.head.weight, self.head.bias
            return features @ weight.mT + (bias.unsqueeze(-2) if bias.ndim == 2 else bias)
        quick = getattr(self.backbone, "forward_sets", None) if once else None
        if quick is not None and images.device.type == "cpu" and statistics == EACH_SET:
            features = quick(images, [len(images)], track=False)
        else:
            features = self.backbone(images, statistics)
        logits: Tensor = self.head(features)
        return logits


class Maml(Learner):
    """Weights by T steps of gradient descent on the support cross-entropy, from the learned θ.

    λ is θ, w all weights but the offsets of the normalisation, which are learned across episodes
    alone; Φ_0 is the identity, L and E the cross-entropy of support and query images.

    Args:
        backbone: h; a linear layer comes behind it. Or its name.
        way: classes an episode. With None the last layer starts at zero and any way will do; the
            result then does not depend on which class has which index.
        image_shape: (height, width, channels), where the backbone is named.
        norm: `episode` (transductive, as in the papers) or `support`.
        steps: T in training.
        test_steps: T after training; None takes `steps`.
        step_size: η, on the mean over the support images.
        step_sizes, first_order, moves, offsets_move, proximal, engine, dynamics, minibatch: as of
            `Adaptation`.
        learned: as of `AdaptedNetwork`.

    Cost: of a loss and its gradient, (Q + 3 T S) / (Q + S) passes over the images with `Unrolled`,
    S support and Q query images; memory of T graphs of the support images an episode.

    Source: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks (Finn, Abbeel, Levine,
    2017), Eq. 1 and Algorithm 2.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=4)
    allowed = frozenset({Normalization.EPISODE, Normalization.SUPPORT})

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int | None,
        image_shape: Sequence[int] | None = None,
        norm: Normalization | str = Normalization.EPISODE,
        steps: int = 5,
        test_steps: int | None = None,
        step_size: float = 0.1,
        step_sizes: StepSizes = StepSizes.FIXED,
        first_order: bool = False,
        moves: Callable[[str], bool] = lambda _: True,
        offsets_move: bool = False,
        proximal: float = 0.0,
        engine: Engine | None = None,
        dynamics: Dynamics | None = None,
        minibatch: int | None = None,
        learned: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.normalization = Normalization(norm)
        self.check_statistics(self.normalization)
        self.way, self.test_steps = way, test_steps
        if step_sizes is not StepSizes.FIXED and (test_steps or 0) > steps:
            warn_beyond(steps, test_steps)
        adaptation = Adaptation(
            steps=steps,
            step_size=step_size,
            step_sizes=step_sizes,
            first_order=first_order,
            moves=moves,
            offsets_move=offsets_move,
            proximal=proximal,
            engine=engine or Unrolled(),
            dynamics=dynamics,
            minibatch=minibatch,
        )
        self.adapted = AdaptedNetwork(
            WithHead(named_backbone(backbone, image_shape), way or 1),
            support_loss,
            adaptation,
            learned,
        )
        if way is None:
            for leaf in self.adapted.network.head.parameters():  # type: ignore[union-attr]
                leaf.requires_grad_(False).zero_()

    @property
    def backbone(self) -> nn.Module:
        """The network behind which the last layer stands."""
        return cast("nn.Module", self.adapted.network.backbone)

    @property
    def encoder(self) -> Encoder:
        """The network as it is before it adapts."""
        return Encoder(backbone=self.backbone, normalization=self.normalization)

    @property
    def steps(self) -> int:
        """T in the mode that the learner is in."""
        trained = self.adapted.adaptation.steps
        return trained if self.training or self.test_steps is None else self.test_steps

    def adapt(self, support: Tensor, labels: Tensor, way: int) -> AdaptedClassifier:
        """Return the adapted network of each episode.

        Raises:
            ValueError: another way than that of the learned last layer.
            bilevel_core.DivergenceError: an inner run diverges.
        """
        self._check_way(way)
        weights = self.solve_all(support, labels, way)
        by_support = self.normalization is Normalization.SUPPORT
        return AdaptedClassifier(self.adapted, weights, support if by_support else None)

    def solve_all(self, images: Tensor, labels: Tensor, way: int) -> Weights:
        """Return w_T of each episode: at once, by the backbone or `vmap`, or one by one."""
        solve = partial(self.solve, way=way)
        if self.goes_together(images):
            size = max(1, IMAGES // images.shape[1])
            parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
            found = [solve(*part) for part in parts]
            return {name: torch.cat([w[name] for w in found]) for name in found[0]}
        vectorise = pays_to_vectorise(self) and not self.adapted.adaptation.minibatch
        weights = each_task(solve, images, labels, vectorise=vectorise, chunk=CHUNK)
        return cast("Weights", weights)

    def goes_together(self, images: Tensor) -> bool:
        """Say whether one inner run can be that of several episodes.

        The gradient of the sum of their losses in the weights of one is that of its own. Steps that
        mix numbers of w, or see the loss, and solvers on all of w would mix episodes too.
        """
        adaptation = self.adapted.adaptation
        path = isinstance(adaptation.engine, (Unrolled, Reverse, Checkpointed))
        offered = bool(getattr(self.backbone, "has_forward_each", False))
        return path and self.number_by_number and offered and images.device.type == "cpu"

    @property
    def number_by_number(self) -> bool:
        """Whether a step of a number of w sees no other, nor the loss."""
        return isinstance(self.adapted.adaptation.dynamics, (Adam, GradientDescent, NoneType))

    def solve(self, images: Tensor, labels: Tensor, way: int) -> Weights:
        """Return w_T of one episode, or of several with an axis over them in front of all."""
        data = {"x": (images, EACH_SET), "y": labels}
        lam = self.adapted.lam()
        if self.way is None:
            for leaf in ("head.weight", "head.bias"):
                (_, *dim) = lam["start"][leaf].shape
                lam["start"][leaf] = images.new_zeros(way, *dim)
        if images.ndim == 5:
            lam["start"] = {k: w.expand(len(images), *w.shape) for k, w in lam["start"].items()}
        return self.adapted.solve(data, steps=self.steps, lam=lam)

    def _check_way(self, way: int) -> None:
        if self.way is not None and way != self.way:
            raise ValueError(f"way={way}: the learned last layer has way={self.way}: use that")


@final
@dataclass(frozen=True)
class AdaptedClassifier:
    """One set of weights an episode.

    Attributes:
        adapted: λ.
        weights: w_T, each leaf with an axis over episodes before it.
        reference: support images whose statistics normalise other images; None: those of the images
            themselves do.
    """

    adapted: AdaptedNetwork
    weights: Weights
    reference: Tensor | None

    def logits(self, images: Tensor) -> Tensor:
        """Return (episodes, n, way), one pass an episode."""
        rest, reference = self.adapted.lam()["rest"], self.reference

        def one(w: Weights, x: Tensor) -> Tensor:
            return self.adapted.outputs(w, rest, (x, EACH_SET, True))

        def by_reference(w: Weights, x: Tensor, first: Tensor) -> Tensor:
            both, n = torch.cat((first, x)), len(first)
            return self.adapted.outputs(w, rest, (both, Statistics(first=n)))[n:]

        vectorise = pays_to_vectorise(self.adapted)
        inputs = (self.weights, images) if reference is None else (self.weights, images, reference)
        function = one if reference is None else by_reference
        found = each_task(function, *inputs, vectorise=vectorise, chunk=CHUNK)
        return cast("Tensor", found)


@final
class FirstOrderMaml(Maml):
    """MAML with ∇L taken as a constant: ∇f = ∇E(w_T), no second derivative.

    Source: Model-Agnostic Meta-Learning (Finn et al., 2017), section 5.2; On First-Order
    Meta-Learning Algorithms (Nichol, Achiam, Schulman, 2018), section 5.
    """

    def __init__(self, backbone: nn.Module | str, **settings: Any) -> None:
        super().__init__(backbone, first_order=True, **settings)


@final
class Boil(Maml):
    """MAML whose inner loop leaves the last layer alone.

    Source: BOIL: Towards Representation Change for Few-shot Learning (Oh, Yoo, Kim, Yun, 2021),
    section 3.
    """

    def __init__(self, backbone: nn.Module | str, **settings: Any) -> None:
        super().__init__(backbone, moves=_in_body, **settings)


@final
class MetaSgd(Maml):
    """MAML with a learned step size for each number of w, of either sign.

    Source: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning (Li, Zhou, Chen, Li, 2017),
    Eq. 3.
    """

    def __init__(self, backbone: nn.Module | str, *, steps: int = 1, **settings: Any) -> None:
        super().__init__(backbone, step_sizes=StepSizes.COORDINATE, steps=steps, **settings)


@final
class ImplicitMaml(Maml):
    """MAML on L + (ρ/2) ‖w - θ‖², differentiated at its solution: ∇f = (I + H/ρ)⁻¹ ∇E(w_T).

    The path to w_T is forgotten, so memory does not grow with T. As rectifiers and batch norm leave
    H indefinite and T steps do not reach the solution, the system is solved by a few steps of
    conjugate gradient, and neither is refused.

    Args:
        backbone: h.
        proximal: ρ.
        solver_steps: of conjugate gradient.
        settings: as of `Maml`.

    Source: Meta-Learning with Implicit Gradients (Rajeswaran, Finn, Kakade, Levine, 2019), Eqs. 3
    and 6, Algorithm 2.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        proximal: float = 2.0,
        steps: int = 16,
        solver_steps: int = 5,
        **settings: Any,
    ) -> None:
        solver = ConjugateGradient(steps=solver_steps)
        engine = Implicit(solver=solver, tolerance=None, stationarity=None)
        super().__init__(backbone, proximal=proximal, steps=steps, engine=engine, **settings)


def _in_body(name: str) -> bool:
    return not name.startswith("head.")
