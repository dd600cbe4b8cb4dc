"""Weights that the package brings, each with a card that says how they were made."""

from bilevel_models.pretrained.card import Card
from bilevel_models.pretrained.weights import (
    list_pretrained,
    pretrained_card,
    pretrained_head,
    pretrained_weights,
)

__all__ = ["Card", "list_pretrained", "pretrained_card", "pretrained_head", "pretrained_weights"]
