"""The number of a step while a loop is traced: to be computed with, and not to be read.

A tracer can be formatted like any object, and what a function makes of that text, such as the seed
of a generator, would be compiled as one constant for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

__all__ = ["watched"]

BINARY = (
    *("add", "sub", "mul", "mod", "floordiv", "truediv", "pow", "divmod"),
    *("and", "or", "xor", "lshift", "rshift"),
)
UNARY = ("neg", "pos", "abs", "invert")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
OPERATORS = (
    *(f"__{side}{name}__" for side in ("", "r") for name in BINARY),
    *(f"__{name}__" for name in UNARY + COMPARISONS),
)


def watched(tracer: Any) -> Any:
    """Return a traced number whose text cannot be taken: it raises `TypeError`.

    The same holds of what Python's operators make of it, and not of what functions do. For JAX it
    remains a tracer: it is the same object, and its class a subclass of what it was.
    """
    tracer.__class__ = _watched_class(type(tracer))  # type: ignore[arg-type]
    return tracer


@cache
def _watched_class(kind: Any) -> Any:
    if vars(kind).get("__repr__") is _refuse:
        return kind
    own = {name: _operator(getattr(kind, name)) for name in OPERATORS if hasattr(kind, name)}
    text = dict.fromkeys(("__repr__", "__str__", "__format__"), _refuse)
    return type(f"Watched{kind.__name__}", (kind,), {"__slots__": (), **own, **text})


def _operator(operate: Callable[..., Any]) -> Callable[..., Any]:
    def method(*operands: Any) -> Any:
        result = operate(*operands)
        if isinstance(result, tuple):
            return tuple(map(watched, result))
        return result if result is NotImplemented else watched(result)

    return method


def _refuse(self: Any, *_: Any) -> NoReturn:
    del self
    raise TypeError("looked at the number of a step while the loop over steps is traced")
