"""SimpleShot: the nearest class mean of centred features of unit length."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.class_means import nearest_mean
from bilevel_meta.learner import Encoding
from bilevel_meta.methods.pretrained import Pretrained
from bilevel_models import heads

__all__ = ["SimpleShot"]


@final
class SimpleShot(Pretrained):
    """Logits -‖z(x) - c_k‖², z = (h - m) / ‖h - m‖, m the mean of the training images' features.

    m is the average that follows the features during training, with weight `momentum` for each new
    meta-batch; the classes of the test have no part in it.

    Args:
        backbone, classes, encoding: as of `Pretrained`.
        momentum: how fast m follows.

    Source: SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning (Wang,
    Chao, Weinberger, van der Maaten, 2019), section 3, the transformation CL2N.
    """

    mean: Tensor
    seen: Tensor

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        classes: int,
        momentum: float = 0.01,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, classes=classes, **encoding)
        self.output, self.momentum = nn.Linear(self.dim, classes), momentum
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("seen", torch.zeros(()))

    def outputs(self, features: Tensor) -> Tensor:
        """Return the linear outputs."""
        scores: Tensor = self.output(features)
        return scores

    def follow(self, features: Tensor) -> None:
        """Let m follow: the plain mean of the first meta-batches, then a running average."""
        if self.training:
            self.seen += 1
            weight = torch.clamp(1 / self.seen, min=self.momentum)
            self.mean.lerp_(features.mean(dim=(0, 1)).to(self.mean), weight)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Centred:
        """Return the class means of z."""
        mean = self.mean.to(features)
        z = functional.normalize(features - mean, dim=-1)
        return _Centred(mean, nearest_mean(z, labels, way))


@final
class _Centred:
    def __init__(self, mean: Tensor, head: heads.Head) -> None:
        self.mean, self.head = mean, head

    def logits(self, features: Tensor) -> Tensor:
        return heads.logits(self.head, functional.normalize(features - self.mean, dim=-1))
