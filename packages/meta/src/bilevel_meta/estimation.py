"""What fits heads to their optimum, for a representation that was trained with another head."""

from __future__ import annotations

import torch

from bilevel_data import EpisodeBatch
from bilevel_data.episodes.loader import BatchSampler
from bilevel_meta.class_means import class_means
from bilevel_meta.classifier import evaluating
from bilevel_meta.episodes import Episodes
from bilevel_meta.learner import HeadLearner
from bilevel_models import heads

__all__ = ["estimated_solver"]

SEEN, HELD_OUT = 20, 40  # episodes
ROUNDS, RATE = 80, 0.1
TEMPERATURE, DECAY = 8.0, 0.1  # where they start, of features that scatter by 1 in their class


def estimated_solver(
    learner: HeadLearner, seen: BatchSampler, held_out: BatchSampler
) -> heads.HeadSolver:
    """Return a solver for the features of a learner, whose backbone stays as it is.

    Its running mean is that of `seen`. Shrinkage, temperature and decay minimise the cross-entropy
    of the query images of `held_out`, through the optimum of the heads.

    Args:
        learner: with its features.
        seen: episodes of the training classes; their way and shot do not matter.
        held_out: episodes of other classes, best of many sizes, such as those of an uneven
            `VariedSampler` in blocks of one.

    Cost: sixty episodes through the backbone, and eighty heads with their gradient.
    """
    means = [_encoded(learner, seen.batch(k, 1)).support.mean(dim=(0, 1)) for k in range(SEEN)]
    tasks = [_encoded(learner, held_out.batch(k, 1)) for k in range(HELD_OUT)]
    scatter = max(sum(map(_scatter, tasks)) / HELD_OUT, torch.finfo(torch.float32).tiny)
    solver = heads.HeadSolver(
        len(means[0]), temperature=TEMPERATURE / scatter, decay=DECAY * scatter
    ).to(means[0])
    solver.running_mean.copy_(torch.stack(means).mean(dim=0))
    optimizer = torch.optim.Adam(solver.parameters(), lr=RATE, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS)
    for k in range(ROUNDS):
        task = tasks[k % HELD_OUT]
        head = solver.fit_labels(task.support, task.support_labels, task.way)
        scores = heads.logits(head, task.query)
        optimizer.zero_grad()
        heads.cross_entropy(scores, task.query_labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return solver.float()


def _encoded(learner: HeadLearner, batch: EpisodeBatch) -> Episodes:
    """Return an episode whose images are features, (1, n, dim) of float64."""
    episodes = learner.take(batch)
    with evaluating(learner):
        support, query = learner.encoder(episodes.support, episodes.query, training=False)
    return Episodes(
        support=support.double(),
        query=query.double(),
        support_labels=episodes.support_labels,
        query_labels=episodes.query_labels,
        way=episodes.way,
    )


def _scatter(task: Episodes) -> float:
    """Return the mean squared distance of a class's images from their own mean."""
    features = torch.cat((task.support, task.query), dim=1)
    labels = torch.cat((task.support_labels, task.query_labels), dim=1)
    means = class_means(features, labels, task.way)
    away = features - heads.one_hot(labels, task.way, features) @ means
    n, way = features.shape[1], task.way
    return float(away.square().sum() / max(n - way, 1))
