"""Whether probabilities are what they say: of all answers given with 80 %, 80 % should be right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

__all__ = ["Calibration", "calibration_error"]

BINS = 15


@final
@dataclass(kw_only=True)
class Calibration:
    """Confidence and truth of many answers, in bins of the confidence.

    Attributes:
        counts: answers in each bin, (bins,).
        right: those that are right.
        confidence: the sum of what they were given with.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    right: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    confidence: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Take in answers: probabilities (…, n, way) and the classes (…, n) or (n,)."""
        most, predicted = probabilities.double().cpu().max(dim=-1)
        hits = (predicted == labels.cpu()).double().flatten()
        bins = (most.flatten() * BINS).long().clamp(max=BINS - 1)
        self.counts.index_add_(0, bins, torch.ones_like(hits))
        self.right.index_add_(0, bins, hits)
        self.confidence.index_add_(0, bins, most.flatten())

    @property
    def error(self) -> float:
        """The mean over answers of |share right - mean confidence| of their bin, in [0, 1].

        Source: On Calibration of Modern Neural Networks (Guo et al., 2017), Eq. 3.
        """
        return float((self.right - self.confidence).abs().sum() / self.counts.sum().clamp(min=1))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of answers, as `Calibration` takes them."""
    found = Calibration()
    found.add(probabilities, labels)
    return found.error
