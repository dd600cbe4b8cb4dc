"""What fits heads to their optimum, estimated for features whose truth is known."""

import math

import numpy as np
import pytest
from torch import nn

from bilevel_data import ImageSplit, VariedSampler, VariedSpec
from bilevel_meta import HyperRepresentation
from bilevel_meta.estimation import estimated_solver

SIDE, CLASSES, IMAGES = 4, 60, 20
BETWEEN, WITHIN = 30.0, 20.0  # deviations of classes and of their images, in pixels of 0 … 255


class Flat(nn.Module):
    """The pixels themselves as features."""

    dim = SIDE * SIDE

    def forward(self, images, statistics=None):
        return images.flatten(1)


def sampler(seed):
    random = np.random.default_rng(seed)
    centres = 128 + BETWEEN * random.standard_normal((CLASSES, 1, SIDE, SIDE, 1))
    noise = WITHIN * random.standard_normal((CLASSES, IMAGES, SIDE, SIDE, 1))
    split = ImageSplit(
        name="val",
        images=(centres + noise).clip(0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE, 1),
        class_names=tuple(map(str, range(CLASSES))),
        offsets=IMAGES * np.arange(CLASSES + 1),
        sha256="0" * 64,
    )
    spec = VariedSpec(way=(2, 10), shot=(1, 5), query=5)
    return VariedSampler(split, spec, seed=seed)


def test_gaussian_classes_get_their_own_numbers():
    """Then r is the ratio of the variances and β the inverse of that within a class."""
    learner = HyperRepresentation(Flat(), steps=5, unit_length=False)
    solver = estimated_solver(learner, sampler(0), sampler(1))
    assert solver.running_mean.numpy() == pytest.approx(np.full(16, 128 / 255), abs=0.1)
    numbers = solver.log_shrinkage, solver.log_temperature
    r, beta = (math.exp(float(each.detach())) for each in numbers)
    assert 0.5 < r / (WITHIN / BETWEEN) ** 2 < 2
    assert 0.5 < beta / (255 / WITHIN) ** 2 < 2
    assert learner.solver is None
