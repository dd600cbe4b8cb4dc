"""Each image through the backbone once, however many episodes it occurs in.

In evaluation with running averages the features of an image do not depend on the episode, and 600
episodes draw the same images again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.scoring.score import BATCH_PIXELS, until_signal
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_data import EpisodeSampler
from bilevel_data.dataset import Images
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_models import as_images

__all__ = ["FeatureTable", "episode_keys", "feature_table"]

TABLE_BYTES = 1 << 30

Integers = NDArray[np.int64]


@final
@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of the images that some episodes are made of.

    Attributes:
        rows: (4 * images,), the row of image i turned by k quarter turns at 4 i + k; -1 where no
            episode has it.
        features: (rows, dim).
    """

    rows: Integers
    features: Tensor

    def of(self, keys: Integers) -> Tensor:
        """Return the features (…, dim) of the images 4 i + k."""
        return self.features[torch.from_numpy(self.rows[keys]).to(self.features.device)]


def feature_table(
    learner: Learner,
    samplers: Sequence[EpisodeSampler],
    *,
    episodes: int,
    device: torch.device,
    progress: Callable[[float], None] = lambda _share: None,
    processes: Processes = ALONE,
    signals: Sequence[int] = (),
) -> FeatureTable | None:
    """Encode every image of the first episodes of the samplers once.

    Returns None where an image's features depend on its episode, or where the table would take more
    than a gigabyte.

    Args:
        learner: its encoder and its weights.
        samplers: of one split.
        episodes: how many of each.
        device: where to encode, and to keep the features.
        progress: told the share of the images that is done.
        processes: divide the images; the table is that of one process, in all of them.
        signals: as of `until_signal`.

    Raises:
        Interrupted: a process has received a signal.
        RunError: a process is gone.

    Cost: the backbone's forward pass over the distinct images, divided by the processes; memory for
    their features in each; one all-reduce of them.
    """
    if not (learner.normalization.by_averages and isinstance(learner, HeadLearner)):
        return None
    drawn = [keys for each in samplers for keys in episode_keys(each, 0, episodes)]
    wanted = np.unique(np.concatenate([keys.reshape(-1) for keys in drawn]))
    images = samplers[0].split.images
    dim = cast("int", learner.backbone.dim)
    if len(wanted) * dim * torch.float32.itemsize > TABLE_BYTES:
        return None
    features = torch.zeros(len(wanted), dim, device=device)
    size = max(2, BATCH_PIXELS // math.prod(images.shape[1:]))
    # Parts of nearly equal size, so that none is of one image.
    parts = np.array_split(np.arange(len(wanted)), max(1, len(wanted) // size))
    mine = parts[processes.rank :: processes.size]
    for done, part in enumerate(until_signal(mine, signals, processes), 1):
        pixels = _turned(images, wanted[part])
        features[part[0] : part[-1] + 1] = _encoded(learner, pixels, device)
        progress(done / len(mine))
    processes.add(features)
    rows = np.full(4 * len(images), -1, dtype=np.int64)
    rows[wanted] = np.arange(len(wanted))
    return FeatureTable(rows=rows, features=features)


def episode_keys(sampler: EpisodeSampler, first: int, count: int) -> tuple[Integers, Integers]:
    """Return which images episodes are made of, as 4 i + k, in the order of `sampler.batch`.

    Support (count, way*shot) and query (count, way*query).
    """
    corners = np.array([[0, 1], [3, 2]])  # k quarter turns bring k to the place of 0
    numbers = 4 * np.arange(len(sampler.split.images))[:, None, None] + corners
    numbered = replace(sampler.split, images=cast("Any", numbers[..., None]))
    batch = replace(sampler, split=numbered).batch(first, count)
    support, query = (cast("Integers", x[..., 0, 0, 0]) for x in (batch.support, batch.query))
    return support, query


def _turned(images: Images, keys: Integers) -> Images:
    """Return the images (n, height, width, channels) that keys 4 i + k stand for."""
    numbers, turns = np.divmod(keys, 4)
    pixels = images[numbers]
    for k in (1, 2, 3):
        chosen = np.flatnonzero(turns == k)
        if chosen.size:
            pixels[chosen] = np.rot90(pixels[chosen], k, axes=(1, 2))
    return pixels


def _encoded(learner: HeadLearner, pixels: Images, device: torch.device) -> Tensor:
    """Return the features (n, dim) of n > 1 images: to the encoder, one episode of one support."""
    images = as_images(pixels, device)[None]
    with torch.no_grad():
        first, others = learner.encoder(images[:, :1], images[:, 1:], training=False)
    return torch.cat((first[0], others[0]))
