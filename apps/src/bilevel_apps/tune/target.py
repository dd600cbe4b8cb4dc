"""From `MODULE:PROBLEM` and `--set key=value` to a `Tuning`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bilevel_apps.config import parse_yaml
from bilevel_apps.errors import InputError
from bilevel_apps.system.plugins import imported
from bilevel_apps.tune.tuning import Tuning
from bilevel_core import Problem

__all__ = ["EXAMPLES", "load_tuning"]

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "diabetes": "a ridge penalty for each feature, by cross-validation",
        "digits": "a weight for each training example, half of whose labels are wrong",
        "schedules": "learning rate and momentum, adapted while a network trains",
    }
)

WANTED = "a bilevel_apps.tune.Tuning, or a function that returns one"


def load_tuning(target: str, assignments: Sequence[str] = ()) -> Tuning:
    """Return what a target names: `MODULE:PROBLEM`, `FILE.py:PROBLEM` or a built-in example.

    Args:
        target: PROBLEM is a `Tuning` or a function that returns one. Modules are also found in the
            current directory.
        assignments: `key=value`, keyword arguments of the function, read as YAML scalars.

    Raises:
        InputError: the module cannot be imported, or has nothing of that name that is a tuning, or
            an assignment does not fit.
    """
    if target in EXAMPLES:
        place, name = f"bilevel_apps.tune.examples.{target}", target
    else:
        place, _, name = target.rpartition(":")
        if not place or not name:
            raise InputError(
                f"{target}: expected MODULE:PROBLEM, FILE.py:PROBLEM or one of "
                f"{', '.join(EXAMPLES)}"
            )
    module = imported(place, target)
    try:
        found = getattr(module, name)
    except AttributeError:
        have = [key for key, value in vars(module).items() if isinstance(value, Tuning)]
        hint = f"; it has {', '.join(have)}" if have else ""
        raise InputError(f"{target}: {place} has no {name}{hint}") from None
    if callable(found) and not isinstance(found, type | Tuning):
        found = _called(found, target, _assigned(found, target, assignments))
    elif assignments:
        raise InputError(
            f"`assignments`={assignments[0]}: {target} is not a function, so nothing can be set"
        )
    return _checked(found, target)


def _assigned(
    function: Callable[..., Any], target: str, assignments: Sequence[str]
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    taken = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {key: p for key, p in parameters.items() if p.kind in taken}
    given: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"`assignments`={assignment}: expected KEY=VALUE, such as seed=1")
        if key not in known:
            names = ", ".join(known) or "none"
            raise InputError(
                f"`assignments`={assignment}: unknown key {key}; {target} takes: {names}"
            )
        value = parse_yaml(text, f"`assignments`={assignment}")
        given[key] = _like(known[key].default, value, f"`assignments`={assignment}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise InputError(f"{target}: {key} has no default: add `assignments`={key}=VALUE")
    return given


def _like(default: object, value: Any, source: str) -> Any:
    """Return a value that may stand for a default: a scalar, and a number for a number."""
    if isinstance(value, list | dict):
        raise InputError(f"{source}: expected a single value, found a {type(value).__name__}")
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-3 for a string
        except (TypeError, ValueError):
            raise InputError(f"{source}: expected a number, found {value!r}") from None
    if isinstance(default, bool | int | str) and type(value) is not type(default):
        raise InputError(f"{source}: expected {type(default).__name__}, found {value!r}")
    return value


def _called(function: Callable[..., Any], target: str, given: Mapping[str, Any]) -> Any:
    try:
        return function(**given)
    except Exception as error:  # a user's function can fail in any way
        raise InputError(f"{target}: failed with {type(error).__name__}: {error}") from error


def _checked(found: object, target: str) -> Tuning:
    if isinstance(found, Tuning):
        return found
    if isinstance(found, Problem):
        raise InputError(
            f"{target}: is a bilevel_core.Problem, which says neither where λ starts nor how the "
            "inner problem is solved: expected Tuning(problem=…, dynamics=…, lam=…, steps=…, "
            "optimizer=…)"
        )
    raise InputError(f"{target}: expected {WANTED}, found {type(found).__name__}")
