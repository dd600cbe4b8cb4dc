"""The other nine systems of Table 3: their published figures, and how they are trained here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

__all__ = ["SYSTEMS", "System"]

Figures = Mapping[str, tuple[float, float | None]]
"""Accuracy in % and half its interval, by the task, such as `omniglot-5way-1shot`."""


@final
@dataclass(frozen=True, kw_only=True)
class System:
    """A row of the table.

    Attributes:
        title: as the paper calls it.
        published: its figures; of the original papers where Table 3 has others.
        note: what differs between Table 3 and its source.
        quick: changes of the preset for a training of seconds, beside those of all cells.
    """

    title: str
    published: Figures
    note: str = ""
    quick: tuple[str, ...] = ()


def _omniglot(*figures: float | None) -> dict[str, tuple[float, float | None]]:
    names = ("5way-1shot", "5way-5shot", "20way-1shot", "20way-5shot")
    pairs = zip(names, figures, strict=True)
    return {f"omniglot-{name}": (found, None) for name, found in pairs if found is not None}


def _mini(
    one: tuple[float, float] | None, five: tuple[float, float] | None
) -> dict[str, tuple[float, float | None]]:
    pairs = (("5way-1shot", one), ("5way-5shot", five))
    return {f"mini-imagenet-{name}": found for name, found in pairs if found is not None}


EPISODE_LIKE_THE_TEST = ("train.way=5", "train.query=15")
LONGER = ("train.way=5", "train.meta_batch=4", "train.steps=500")
"""For what learns slowly: more and smaller episodes than the other cells have."""

SYSTEMS: Mapping[str, System] = {
    "siamese": System(
        title="Siamese nets",
        published=_omniglot(97.3, 98.4, 88.2, 97.0),
        note="the row is the convolutional Siamese baseline of Matching networks (Vinyals et al., "
        "2016), passed on through the table of MAML; Koch et al. (2015) report 92.0 % on another "
        "protocol",
    ),
    "matching": System(
        title="Matching nets",
        published=_omniglot(98.1, 98.9, 93.8, 98.5) | _mini((43.56, 0.84), (55.31, 0.73)),
        note="Table 3 prints the 1-shot figure of Meta-LSTM in this row; this is the source's "
        "(Ravi and Larochelle, 2017, full context embeddings)",
    ),
    "neural-statistician": System(
        title="Neural statistician", published=_omniglot(98.1, 99.5, 93.2, 98.1)
    ),
    "memory": System(title="Memory module", published=_omniglot(98.4, 99.6, 95.0, 98.6)),
    "meta-lstm": System(
        title="Meta-LSTM",
        published=_mini((43.44, 0.77), (60.60, 0.71)),
        note="Table 3 prints the 1-shot figure of Matching nets in this row",
        quick=(*LONGER, "options.steps=3", "options.hidden=8", "options.step_size=0.1"),
    ),
    "maml": System(
        title="MAML",
        published=_omniglot(98.7, 99.9, 95.8, 98.9) | _mini((48.70, 1.84), (63.11, 0.92)),
        note="Table 3 prints the interval of first-order MAML, 1.75; all figures are transductive",
        quick=(*EPISODE_LIKE_THE_TEST, "options.steps=3", "options.test_steps=3"),
    ),
    "meta-networks": System(
        title="Meta-networks",
        published=_omniglot(98.9, None, 97.0, None) | _mini((49.21, 0.96), None),
        quick=(*EPISODE_LIKE_THE_TEST, "options.embedding=16", "options.hidden=10"),
    ),
    "prototypical": System(
        title="Prototypical nets",
        published=_omniglot(98.8, 99.7, 96.0, 98.9) | _mini((49.42, 0.78), (68.20, 0.66)),
    ),
    "snail": System(
        title="SNAIL",
        published=_omniglot(99.1, 99.8, 97.6, 99.4) | _mini((55.71, 0.99), (68.88, 0.92)),
        note="mini-ImageNet with a residual network",
        quick=(*LONGER, "options.filters=32"),
    ),
}
"""By the value of `method`; figures from the original papers, read there."""
