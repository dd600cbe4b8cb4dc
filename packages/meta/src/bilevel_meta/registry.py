"""The methods by the name that a configuration gives them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

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
from bilevel_meta.methods.variants import VARIANTS

__all__ = ["LEARNERS", "create_learner", "register_learner", "settings_of"]

_LEARNERS: dict[str, type[Learner]] = {
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

LEARNERS: Mapping[str, type[Learner]] = MappingProxyType(_LEARNERS)
"""By the value of the configuration's `method`, with those that were registered."""

NO_OPTIONS = frozenset({"dynamics", "engine", "learned", "moves", "step_sizes"})
"""Settings that are objects, for Python alone."""


def register_learner(name: str, kind: type[Learner]) -> None:
    """Add a method under a new name, which a configuration's `method` may then have.

    Its constructor takes the backbone, and by keyword what it needs of `way`, `shot`, `classes`,
    `image_shape`, `norm` and `bfloat16`, and settings of its own with defaults.

    Raises:
        TypeError: no subclass of `Learner`.
        ValueError: the name is taken.
    """
    if not (isinstance(kind, type) and issubclass(kind, Learner)):
        raise TypeError(f"{kind!r} is no subclass of Learner: derive it, or from HeadLearner")
    if name in _LEARNERS or name in VARIANTS:
        raise ValueError(f"method {name!r} is there already: choose another name")
    _LEARNERS[name] = kind


def settings_of(name: str) -> dict[str, Any]:
    """Return what a method's constructor takes beside the backbone, with the defaults.

    Raises:
        ValueError: no such method.
    """
    found: dict[str, Any] = {}
    for kind in _kind(name).__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        found = own | found
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def create_learner(
    name: str, backbone: nn.Module | str, *, given: Mapping[str, Any], options: Mapping[str, Any]
) -> Learner:
    """Return a learner by the name of its method.

    Args:
        name: one of `LEARNERS`.
        backbone: as of the method.
        given: what is known of the task, such as `way`, `classes` and `image_shape`: a method gets
            of it what it has a setting for.
        options: settings of the method; each must be one, and a plain value.

    Raises:
        ValueError: no such method or setting, or a value that the method refuses.
    """
    known = settings_of(name)
    plain = tuple(key for key in known if key not in NO_OPTIONS and key not in given)
    if unknown := sorted(options.keys() - set(plain)):
        raise ValueError(
            f"{name} has no setting {', '.join(unknown)}: choose of {', '.join(plain)}"
        )
    for key, value in options.items():
        kind = type(known[key])
        fits = isinstance(value, (int, float) if kind is float else kind)
        if kind in (bool, int, float, str) and (
            not fits or (isinstance(value, bool) and kind is not bool)
        ):
            raise ValueError(f"{name}: {key}={value!r}: expected a {kind.__name__}")
    offered = {key: value for key, value in given.items() if key in known}
    try:
        return _kind(name)(backbone, **offered, **options)
    except TypeError as error:
        raise ValueError(f"{name} with {dict(options)}: {error}") from error


def _kind(name: str) -> type[Learner]:
    if name not in LEARNERS:
        raise ValueError(f"no method {name!r}: choose one of {', '.join(LEARNERS)}")
    return LEARNERS[name]
