"""The images of an episode as one set: encoded once, and normalised together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bilevel_apps.episodes import Episodes
from bilevel_models import Encoder, Features, Normalization

__all__ = ["encode_as_one", "encode_set"]


def encode_as_one(encoder: Encoder, episodes: Episodes) -> Features:
    """Return the features of united episodes, whose support and query images are the same."""
    features, pull_back = encode_set(encoder, episodes.support)
    return Features(
        support=features,
        query=features.detach(),
        pull_back=lambda grad_support, grad_query: pull_back(grad_support + grad_query),
    )


def encode_set(encoder: Encoder, images: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Return features (batch, n, dim) for training, and their way back.

    With the normalisations `episode` and `support` each episode's statistics are its own images';
    with `ghost` too, and with `batch` they are those of all images, and the running averages
    follow.

    Args:
        encoder: how.
        images: (batch, n, channels, height, width), n ≥ 2.

    Cost: that of `Encoder.encode` for as many images; with `episode` and `support` for one episode
    more where their number is odd.
    """
    if encoder.normalization in (Normalization.GHOST, Normalization.BATCH):
        return _halves(encoder, images, images.shape[1] - 1, dim=1)
    # A set passes as the support set of an episode that has another set as its query set: the two
    # know nothing of one another.
    alone = replace(encoder, normalization=Normalization.EPISODE)
    count = len(images)
    if count % 2 == 0:
        return _halves(alone, images, count // 2, dim=0)
    features, pull_back = _halves(alone, torch.cat((images, images[:1])), count // 2 + 1, dim=0)

    def pull_back_without_the_last(grad: Tensor) -> None:
        pull_back(torch.cat((grad, torch.zeros_like(grad[:1]))))

    return features[:-1], pull_back_without_the_last


def _halves(
    encoder: Encoder, images: Tensor, first: int, *, dim: int
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Encode the first so many along `dim` as the support images, and the others as the query."""
    sizes = (first, images.shape[dim] - first)
    features = encoder.encode(*images.split_with_sizes(sizes, dim), training=True)

    def pull_back(grad: Tensor) -> None:
        features.pull_back(*grad.split_with_sizes(sizes, dim))

    return torch.cat((features.support, features.query), dim), pull_back
