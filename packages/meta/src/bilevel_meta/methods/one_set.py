"""The images of an episode as one set: encoded once, and normalised together."""

from __future__ import annotations

from bilevel_meta.episodes import Episodes
from bilevel_models import Encoder, Features

__all__ = ["encode_as_one"]


def encode_as_one(encoder: Encoder, episodes: Episodes) -> Features:
    """Return the features of united episodes, whose support and query images are the same."""
    features, pull_back = encoder.encode_set(episodes.support, training=True)
    return Features(
        support=features,
        query=features.detach(),
        pull_back=lambda grad_support, grad_query: pull_back(grad_support + grad_query),
    )
