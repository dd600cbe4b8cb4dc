"""The methods by the name that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bilevel_meta.learner import Learner
from bilevel_meta.methods.anil import Anil
from bilevel_meta.methods.baseline import Baseline, BaselinePlus
from bilevel_meta.methods.matching import Matching
from bilevel_meta.methods.prototypical import Prototypical
from bilevel_meta.methods.relation import Relation
from bilevel_meta.methods.ridge import Ridge
from bilevel_meta.methods.siamese import Siamese
from bilevel_meta.methods.simpleshot import SimpleShot
from bilevel_meta.methods.svm import SupportVectors

__all__ = ["LEARNERS"]

LEARNERS: Mapping[str, type[Learner]] = MappingProxyType(
    {
        "anil": Anil,
        "baseline": Baseline,
        "baseline++": BaselinePlus,
        "matching": Matching,
        "prototypical": Prototypical,
        "relation": Relation,
        "ridge": Ridge,
        "siamese": Siamese,
        "simpleshot": SimpleShot,
        "svm": SupportVectors,
    }
)
"""By the value of the configuration's `method`."""
