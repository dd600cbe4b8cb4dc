"""The methods by the name that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bilevel_meta.learner import Learner
from bilevel_meta.methods.anil import Anil
from bilevel_meta.methods.baseline import Baseline, BaselinePlus
from bilevel_meta.methods.cavia import Cavia
from bilevel_meta.methods.learned_optimizer import LearnedOptimizer
from bilevel_meta.methods.maml import Boil, FirstOrderMaml, ImplicitMaml, Maml, MetaSgd
from bilevel_meta.methods.maml_plus import MamlPlus
from bilevel_meta.methods.matching import Matching
from bilevel_meta.methods.memory import Memory
from bilevel_meta.methods.meta_lstm import MetaLstm
from bilevel_meta.methods.meta_networks import MetaNetworks
from bilevel_meta.methods.neural_statistician import NeuralStatistician
from bilevel_meta.methods.prototypical import Prototypical
from bilevel_meta.methods.relation import Relation
from bilevel_meta.methods.reptile import Reptile
from bilevel_meta.methods.ridge import Ridge
from bilevel_meta.methods.siamese import Siamese
from bilevel_meta.methods.simpleshot import SimpleShot
from bilevel_meta.methods.snail import Snail
from bilevel_meta.methods.svm import SupportVectors

__all__ = ["LEARNERS"]

LEARNERS: Mapping[str, type[Learner]] = MappingProxyType(
    {
        "anil": Anil,
        "baseline": Baseline,
        "baseline++": BaselinePlus,
        "boil": Boil,
        "cavia": Cavia,
        "fomaml": FirstOrderMaml,
        "imaml": ImplicitMaml,
        "learned-optimizer": LearnedOptimizer,
        "maml": Maml,
        "maml++": MamlPlus,
        "matching": Matching,
        "memory": Memory,
        "meta-lstm": MetaLstm,
        "meta-networks": MetaNetworks,
        "meta-sgd": MetaSgd,
        "neural-statistician": NeuralStatistician,
        "prototypical": Prototypical,
        "relation": Relation,
        "reptile": Reptile,
        "ridge": Ridge,
        "siamese": Siamese,
        "simpleshot": SimpleShot,
        "snail": Snail,
        "svm": SupportVectors,
    }
)
"""By the value of the configuration's `method`."""
