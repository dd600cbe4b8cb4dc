"""The neural statistician: a generative model of sets of images of one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.class_means import class_means
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Batch
from bilevel_meta.learner import HeadLearner
from bilevel_models import Normalization

__all__ = ["Gaussian", "NeuralStatistician", "divergence"]


class _Rest(TypedDict, total=False):
    """`Encoding` without the image shape, which is an argument of its own."""

    norm: Normalization | str
    unit_length: bool
    bfloat16: bool


class Gaussian(NamedTuple):
    """A normal distribution of independent numbers: its mean and the logarithm of its variance."""

    mean: Tensor
    log_var: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return a sample, with the derivative in mean and variance."""
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, generator=generator)
        return self.mean + noise.to(self.mean) * (self.log_var / 2).exp()


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """Return KL(q ‖ p), summed over the last axis."""
    ratio = (q.log_var - p.log_var).exp()
    distance = (q.mean - p.mean).square() / p.log_var.exp()
    return 0.5 * (ratio + distance - 1 - q.log_var + p.log_var).sum(dim=-1)


@final
class NeuralStatistician(HeadLearner):
    """c ~ N(0, 1) a set, z ~ N(μ(c), σ(c)) an image, x ~ Bernoulli(d(z, c)), all learned.

    Trained to explain sets of one class, by the evidence lower bound and without any label that
    tells classes apart. The context of a set is known from the mean of its images' statistics; a
    query goes to the class k with the least KL(q(c | D_k) ‖ q(c | {x})). Feed-forward in λ.

    Args:
        backbone: what statistics and latent numbers are computed from.
        image_shape: (height, width, channels); squares, with a side that is a multiple of 4.
        context: numbers of c.
        latent: numbers of z.
        width: of the layers between.
        encoding: as of `HeadLearner`.

    Raises:
        ValueError: an image shape that is no such square.

    Source: Towards a Neural Statistician (Edwards, Storkey, 2017), Eqs. 3 and 4, section 4.
    """

    diet = Diet(way=8, shot=1, query=4, episodes=4)
    drawn: Tensor

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        image_shape: Sequence[int],
        context: int = 64,
        latent: int = 16,
        width: int = 128,
        **encoding: Unpack[_Rest],
    ) -> None:
        super().__init__(backbone, image_shape=image_shape, **encoding)
        height, image_size, channels = image_shape
        if image_size % 4 or height != image_size:
            raise ValueError(
                f"image_shape={tuple(image_shape)}: the decoder makes squares whose side is a "
                "multiple of 4: choose such a size"
            )
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        side, maps = image_size // 4, max(1, width // 8)
        self.statistic = nn.Sequential(nn.Linear(self.dim, width), nn.ELU())
        self.pooled = nn.Sequential(
            nn.Linear(width, width), nn.ELU(), nn.Linear(width, 2 * context)
        )
        self.encode = nn.Sequential(
            nn.Linear(self.dim + context, width), nn.ELU(), nn.Linear(width, 2 * latent)
        )
        self.prior = nn.Sequential(
            nn.Linear(context, width), nn.ELU(), nn.Linear(width, 2 * latent)
        )
        self.decode = nn.Sequential(
            *(nn.Linear(latent + context, width), nn.ELU(), nn.Linear(width, maps * side**2)),
            *(nn.ELU(), nn.Unflatten(-1, (maps, side, side))),
            *(nn.Conv2d(maps, 4 * maps, 3, padding=1), nn.PixelShuffle(2), nn.ELU()),
            *(nn.Conv2d(maps, 4 * channels, 3, padding=1), nn.PixelShuffle(2)),
        )

    def context(self, statistics: Tensor) -> Gaussian:
        """Return q(c | D) of the mean statistics of sets, (…, width)."""
        return _gaussian(self.pooled(statistics))

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Contexts:
        """Return q(c | D_k) of each class."""
        return _Contexts(self, self.context(class_means(self.statistic(features), labels, way)))

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative evidence lower bound an image; each class is a set.

        Of each set, statistics are taken of a number of images that is drawn, 1 to all, so that one
        image alone has a context too. What is drawn is a function of how many meta-batches it was
        trained on.
        """
        generator = torch.Generator().manual_seed(int(self.drawn))
        self.drawn += int(self.training)
        both = self.take(batch).united()
        labels, way = both.support_labels, both.way
        (features,) = self.encoder(both.support, training=self.training)
        seen = _some(labels, way, generator)
        q_c = self.context(class_means(self.statistic(features), seen, way + 1)[:, :way])
        at = labels.unsqueeze(-1).expand(-1, -1, q_c.mean.shape[-1])
        c = q_c.draw(generator).gather(1, at)  # every image with the context of its class
        q_z = _gaussian(self.encode(torch.cat((features, c), dim=-1)))
        decoded = self.decode(torch.cat((q_z.draw(generator), c), dim=-1).flatten(0, 1))
        images = both.support.flatten(0, 1)
        explained = functional.binary_cross_entropy_with_logits(decoded, images, reduction="sum")
        nothing = torch.zeros_like(q_c.mean)
        costs = divergence(q_c, Gaussian(nothing, nothing)).sum()
        costs = costs + divergence(q_z, _gaussian(self.prior(c))).sum()
        return (explained + costs) / len(images)


def _some(labels: Tensor, way: int, generator: torch.Generator) -> Tensor:
    """Return the labels of a class's first images, as many as is drawn, and `way` for others."""
    members = functional.one_hot(labels, way)
    rank = members.cumsum(dim=1).gather(2, labels.unsqueeze(-1)).squeeze(-1)
    most = members.sum(dim=1).amax(dim=1, keepdim=True)
    drawn = torch.rand(len(labels), 1, generator=generator).to(labels.device)
    return labels.masked_fill(rank > 1 + (drawn * most).long(), way)


def _gaussian(numbers: Tensor) -> Gaussian:
    mean, log_var = numbers.chunk(2, dim=-1)
    return Gaussian(mean, log_var.clamp(-10, 10))


@final
@dataclass(frozen=True)
class _Contexts:
    learner: NeuralStatistician
    classes: Gaussian

    def logits(self, features: Tensor) -> Tensor:
        """Return -KL(q(c | D_k) ‖ q(c | {x})), (episodes, n, way)."""
        alone = self.learner.context(self.learner.statistic(features))
        one, others = (
            Gaussian(*(x.unsqueeze(axis) for x in g)) for g, axis in ((self.classes, 1), (alone, 2))
        )
        return -divergence(one, others)
