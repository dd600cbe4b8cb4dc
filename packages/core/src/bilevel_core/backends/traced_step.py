"""The number of a step while a loop is traced: to be computed with, and not to be read.

A tracer can be formatted like any object, and what a function makes of that text, such as the seed
of a generator, would be compiled as one constant for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

__all__ = ["watched"]

OPERATORS = ("add", "sub", "mul", "mod", "floordiv", "truediv", "pow")


def watched(tracer: Any) -> Any:
    """Return a traced number whose text cannot be taken: it raises `TypeError`.

    The same holds of what operators make of it. For JAX it remains a tracer: it is the same object,
    and its class a subclass of what it was.
    """
    tracer.__class__ = _watched_class(type(tracer))  # type: ignore[arg-type]
    return tracer


@cache
def _watched_class(kind: Any) -> Any:
    if vars(kind).get("__repr__") is _refuse:
        return kind
    names = ("__neg__", *(f"__{side}{name}__" for side in ("", "r") for name in OPERATORS))
    own = {name: _operator(getattr(kind, name)) for name in names}
    text = dict.fromkeys(("__repr__", "__str__", "__format__"), _refuse)
    return type(f"Watched{kind.__name__}", (kind,), {"__slots__": (), **own, **text})


def _operator(operate: Callable[..., Any]) -> Callable[..., Any]:
    def method(*operands: Any) -> Any:
        result = operate(*operands)
        return result if result is NotImplemented else watched(result)

    return method


def _refuse(self: Any, *_: Any) -> NoReturn:
    del self
    raise TypeError("looked at the number of a step while the loop over steps is traced")
