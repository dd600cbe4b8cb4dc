"""The figures of a representation beside those of raw pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from bilevel_apps.embed.samples import Embedded
from bilevel_apps.embed.separation import Separation, separation

__all__ = ["Figures", "compare_with_pixels"]


@final
@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far apart the classes of some images are.

    Attributes:
        split: that the images are of.
        images: how many.
        classes: of how many classes.
        representation: by their features.
        pixels: by their raw pixels.
    """

    split: str
    images: int
    classes: int
    representation: Separation
    pixels: Separation

    def metrics(self) -> dict[str, float]:
        """Return the figures under the names that MLflow gets."""
        kinds = {"": self.representation, "pixels_": self.pixels}
        return {
            f"embed/{self.split}/{prefix}{name}": value
            for prefix, found in kinds.items()
            for name, value in found.named().items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "split": self.split,
            "images": self.images,
            "classes": self.classes,
            "representation": self.representation.named(),
            "pixels": self.pixels.named(),
        }

    def heading(self) -> str:
        """Return what was counted."""
        return f"{self.images:,} images of {self.classes} classes of {self.split}"

    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Return a table for people, its heading first."""
        h, x = self.representation, self.pixels
        return (
            ("", "features", "pixels"),
            ("silhouette", f"{h.silhouette:.3f}", f"{x.silhouette:.3f}"),
            ("nearest class mean", _share(h.centroid_accuracy), _share(x.centroid_accuracy)),
            ("nearest image", _share(h.neighbour_accuracy), _share(x.neighbour_accuracy)),
        )


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def compare_with_pixels(images: Embedded, split: str) -> Figures:
    """Return the figures of images of a split."""
    pixels = images.pixels.reshape(len(images.pixels), -1).astype(np.float32) / 255
    return Figures(
        split=split,
        images=len(images.labels),
        classes=len(np.unique(images.labels)),
        representation=separation(images.features, images.labels),
        pixels=separation(pixels, images.labels),
    )
