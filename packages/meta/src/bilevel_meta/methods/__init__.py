"""The rows of the paper's Table 4: what a meta-batch does to the representation, a file each.

They differ in training alone. Afterwards every one is a representation on which heads are trained
with T steps on the support images of an episode.

| method | a training episode | gradient of λ | backbone, forward and backward |
| --- | --- | --- | --- |
| hyper-representation | support and query apart | ∇f_T, through the T steps | once |
| bilevel-train | one set, for both | ∇f_T, through the T steps | once |
| approx | support and query apart | at w_T, ∇_λ w_T taken as 0 | once |
| approx-train | one set, for both | at w_T, ∇_λ w_T taken as 0 | once |
| classic-train | one set | of the loss that w and λ share, T steps of both | T times |
| multiclass | images with their class among all | of one classifier of all classes | once |

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et al.,
2018), section 5.3 and Table 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bilevel_meta.methods.approx import approx
from bilevel_meta.methods.approx_train import approx_train
from bilevel_meta.methods.bilevel_train import bilevel_train
from bilevel_meta.methods.classic_train import classic_train
from bilevel_meta.methods.hyper_representation import hyper_representation
from bilevel_meta.methods.method import Method
from bilevel_meta.methods.multiclass import multiclass

__all__ = ["METHODS", "Method"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "hyper-representation": hyper_representation,
        "approx": approx,
        "approx-train": approx_train,
        "bilevel-train": bilevel_train,
        "classic-train": classic_train,
        "multiclass": multiclass,
    }
)
"""By the value of the configuration's `method`."""
