"""Weights that come with the package: a safetensors file each, and a card that says what it is."""

from __future__ import annotations

import hashlib
from importlib import resources
from importlib.resources.abc import Traversable

import safetensors
import safetensors.torch
from torch import Tensor

from bilevel_models.heads import HeadSolver
from bilevel_models.pretrained.card import Card, parse_card

__all__ = [
    "HEAD",
    "LARGEST",
    "list_pretrained",
    "parse_weights",
    "pretrained_card",
    "pretrained_head",
    "pretrained_weights",
]

LARGEST = 1_000_000  # bytes of a weights file: they travel with every installation
HEAD = "head."  # before the names of tensors that are not the backbone's
WEIGHTS: Traversable = resources.files("bilevel_models") / "pretrained"


def list_pretrained() -> tuple[Card, ...]:
    """Return the cards of all weights that come with this package, sorted by tag.

    Raises:
        ValueError: a card is damaged.
    """
    return tuple(pretrained_card(tag) for tag in _tags())


def pretrained_card(tag: str) -> Card:
    """Return the card of a tag.

    Raises:
        ValueError: no such tag, or its card is damaged.
    """
    if tag not in _tags():
        there = ", ".join(_tags()) or "none in this installation"
        raise ValueError(f"no pretrained weights {tag!r}: choose one of {there}")
    card = parse_card(_read(f"{tag}.json"), f"{tag}.json")
    if card.tag != tag:
        raise ValueError(f"{tag}.json: its tag is {card.tag!r}: reinstall bilevel-models")
    return card


def pretrained_weights(card: Card) -> dict[str, Tensor]:
    """Return the tensors of the backbone that a card of `list_pretrained` describes, by name.

    Raises:
        ValueError: they are missing or damaged.

    Cost: reading and hashing less than a megabyte: a few milliseconds.
    """
    return {name: each for name, each in _tensors(card).items() if not name.startswith(HEAD)}


def pretrained_head(card: Card) -> HeadSolver:
    """Return what fits heads on the features of a card's backbone, of length one if it says so.

    Raises:
        ValueError: the card has none, or the file is missing or damaged.

    Cost: as `pretrained_weights`.
    """
    name = f"{HEAD}running_mean"
    mean = _tensors(card).get(name)
    if card.head is None or mean is None or mean.ndim != 1:
        raise ValueError(f"{card.tag}: brings no numbers of a HeadSolver: use heads.descend")
    solver = HeadSolver(len(mean), **card.head)
    solver.running_mean.copy_(mean)
    return solver


def parse_weights(content: bytes, card: Card, source: str) -> dict[str, Tensor]:
    """Read tensors by name, if their file is the one that the card was written for.

    Raises:
        ValueError: another file, or not safetensors.
    """
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ValueError(f"{source}: damaged: not the SHA-256 of its card: reinstall it")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{source}: not a safetensors file ({error})") from None


def _tensors(card: Card) -> dict[str, Tensor]:
    name = f"{card.tag}.safetensors"
    return parse_weights(_read(name), card, name)


def _tags() -> list[str]:
    if not WEIGHTS.is_dir():
        return []
    names = (entry.name for entry in WEIGHTS.iterdir())
    return sorted(name[:-5] for name in names if name.endswith(".json"))


def _read(name: str) -> bytes:
    try:
        return (WEIGHTS / name).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{name}: cannot be read ({reason}): reinstall bilevel-models") from None
