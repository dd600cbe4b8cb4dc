"""The figures that the paper prints, from `published.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["published", "published_accuracy"]


@cache
def _figures() -> dict[str, Any]:
    text = Path(__file__).with_suffix(".yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def published(item: str, figure: str) -> dict[Any, Any]:
    """Return figures of a table or figure of the paper, as the file has them."""
    found: dict[Any, Any] = _figures()[item][figure]
    return found


def published_accuracy(data: str, network: str, way: int, shot: int) -> float | None:
    """Return the accuracy of the hyper-representation in %, if the paper has it for the network.

    Of Omniglot it does not name the network.
    """
    part = f"-{network}" if data == "mini-imagenet" else ""
    row = published("table3", "hyper-representation").get(f"{data}{part}-{way}way-{shot}shot")
    return None if row is None else float(row[0])
