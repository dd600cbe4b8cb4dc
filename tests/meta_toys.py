"""Small episodes, networks and learners in float64, for the tests of every method."""

from dataclasses import replace

import torch

from bilevel_meta.episodes import Episodes
from bilevel_meta.registry import LEARNERS
from bilevel_models import ConvNet

WAY, CLASSES, SIDE = 3, 10, 8

# Beside the names of the configuration: settings that change what a method is.
CASES = {
    **{name: (name, {}) for name in LEARNERS},
    "matching-fce": ("matching", {"reads": 2}),
    "matching-euclidean": ("matching", {"euclidean": True, "temperature": 1.0}),
}


def network(filters=4, pool=False):
    return ConvNet(channels=1, image_size=SIDE, filters=filters, pool=pool, depth=2)


def learner(case, seed=0, **settings):
    """A small learner of a case, with random weights of a seed."""
    name, more = CASES[case]
    kind = LEARNERS[name]
    needed = {
        "anil": {"way": WAY, "steps": 3},
        "baseline": {"classes": CLASSES, "steps": 10, "step_size": 0.1},
        "baseline++": {"classes": CLASSES, "steps": 10},
        "boil": {"way": WAY, "steps": 2},
        "cavia": {"way": WAY, "context": 5},
        "fomaml": {"way": WAY, "steps": 2},
        "imaml": {"way": WAY, "steps": 2},
        "learned-optimizer": {"way": WAY, "steps": 2, "hidden": 4},
        "maml": {"way": WAY, "steps": 2},
        "maml++": {"way": WAY, "steps": 2, "anneal": 50},
        "meta-lstm": {"way": WAY, "steps": 2, "hidden": 4},
        "meta-networks": {"way": WAY, "embedding": 12, "hidden": 3},
        "meta-sgd": {"way": WAY},
        "reptile": {"way": WAY, "steps": 2, "test_steps": None, "step_size": 0.02},
        "relation": {"channels": 4, "width": 4},
        "neural-statistician": {"image_shape": (SIDE, SIDE, 1), "context": 4, "width": 8},
        "snail": {"way": WAY, "shot": 2, "filters": 8},
        "simpleshot": {"classes": CLASSES},
    }
    torch.manual_seed(seed)
    made = kind(network(), **{**needed.get(name, {}), **more, **settings}).double()
    for parameter in made.parameters():
        # Away from the zeros of a fresh network, where derivatives can hide.
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def episodes(count=2, way=WAY, shot=2, query=3, seed=1, noise=1.0):
    """Random pictures around one random picture a class."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(count, way, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    label = torch.arange(way)

    def images(labels):
        drawn = torch.rand(
            count, len(labels), 1, SIDE, SIDE, generator=generator, dtype=torch.float64
        )
        return picture[:, labels] * (1 - noise) + noise * drawn

    support, asked = label.repeat_interleave(shot), label.repeat(query)
    draw = [torch.randperm(CLASSES, generator=generator)[:way] for _ in range(count)]
    return Episodes(
        support=images(support),
        query=images(asked),
        support_labels=support.expand(count, -1),
        query_labels=asked.expand(count, -1),
        way=way,
        classes=torch.stack(draw),
    )


def one_of(batch, index):
    """One episode of a meta-batch, by itself."""
    tensors = {k: v[index : index + 1] for k, v in vars(batch).items() if k != "way"}
    return replace(batch, **tensors)


def logits(made, batch):
    return made.adapt(batch.support, batch.support_labels, batch.way).logits(batch.query)
