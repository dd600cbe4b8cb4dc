"""Multiclass: one classifier of all training classes, whose linear outputs are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from bilevel_meta.episodes import Episodes
from bilevel_meta.inner_problem import outer_loss
from bilevel_meta.task import MetaTask, Outcome
from bilevel_models import heads

__all__ = ["multiclass"]


def multiclass(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield the gradient of the mean cross-entropy over the images of a meta-batch.

    -log softmax(h(x))_c, where h(x) are the network's linear outputs, one a training class
    (`linear_outputs.py`), and c is the image's class among them. Every class is as probable as
    every other, and so are its images: an unbiased estimate of that over the training classes,
    with the least variance where an episode has all of them.

    The features of validation and test are h(x) too; dividing them by their length is left to
    them. Inner step size and scale are not in the loss and stay what they are.

    Cost: the backbone's forward and backward pass over the images.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3.
    """
    yield task.accumulated(_add(task, part) for part in episodes.united().parts(task.parts))


def _add(task: MetaTask, episodes: Episodes) -> Outcome:
    """Add the share of a part of the meta-batch to the `grad`."""
    if episodes.classes is None:
        raise ValueError("the episodes do not say which classes they have: give Episodes.classes")
    labels = episodes.classes.gather(1, episodes.support_labels)
    encoder = replace(task.encoder, unit_length=False)
    scores, pull_back = encoder.encode_set(episodes.support, training=True)
    value = outer_loss(scores.requires_grad_(), labels, task.label_smoothing)
    (grad,) = torch.autograd.grad(value, [scores])
    pull_back(grad / task.parts)
    accuracy = heads.accuracy(scores.detach(), labels).mean()
    return Outcome(loss=float(value.detach()), accuracy=float(accuracy))
