"""What an optimiser moves where some leaves of λ are kept in sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

from bilevel_core.abstract import Backend
from bilevel_core.constraints.sets import Constraint
from bilevel_core.tree import leaves, map_leaves, named_leaves, rebuild
from bilevel_core.types import Array, Tree

__all__ = ["Coordinates", "coordinates"]


@final
@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """θ, which the optimiser moves, and λ(θ): a set's `inside` for its leaves, else θ itself.

    Attributes:
        backend: the framework.
        within: a tree like λ of sets or None: θ is the leaf's coordinates in its set.
        onto: a tree like λ of sets or None: θ, which is then λ, is projected onto its set.
    """

    backend: Backend
    within: Tree
    onto: Tree

    def free(self, lam: Tree) -> Tree:
        """Return θ of a λ."""
        return _each(self.within, lam, lambda among, leaf: among.free(leaf, self.backend))

    def inside(self, theta: Tree) -> Tree:
        """Return λ(θ)."""
        return _each(self.within, theta, lambda among, leaf: among.inside(leaf, self.backend))

    def pull(self, grad: Tree, theta: Tree) -> Tree:
        """Return the gradient in θ from that in λ, (∂λ/∂θ)ᵀ ∇f."""
        if all(among is None for among in leaves(self.within)):
            return grad
        _, pull_back = self.backend.vjp(self.inside, theta)
        return self.backend.detach(pull_back(grad)[0])

    def project(self, theta: Tree) -> Tree:
        """Return θ with the leaves projected that are to be."""
        return _each(self.onto, theta, lambda among, leaf: among.project(leaf, self.backend))


def coordinates(backend: Backend, lam: Tree, *, reparametrize: Tree, project: Tree) -> Coordinates:
    """Read two prefix trees of sets against the λ that is to start in them.

    Args:
        backend: the framework.
        lam: λ.
        reparametrize: a set, None, or a dict, list or tuple of such trees that is nested like λ;
            a set is for every leaf under its place.
        project: the same.

    Raises:
        ValueError: a tree is not nested like λ, a leaf has a set in both, or λ is not in a set (in
            its interior, for `reparametrize`).
        TypeError: a tree holds something else.
    """
    within = rebuild(lam, list(_expand_prefix(reparametrize, lam, "reparametrize")))
    onto = rebuild(lam, list(_expand_prefix(project, lam, "project")))
    for (path, leaf), inner, outer in zip(
        named_leaves(lam, "λ"), leaves(within), leaves(onto), strict=True
    ):
        if inner is not None and outer is not None:
            raise ValueError(f"{path} is given to both reparametrize and project: choose one")
        if inner is not None and not inner.contains(leaf, backend, strictly=True):
            raise ValueError(
                f"{path} starts at {_range(leaf)}, which is not strictly inside {inner}: move the "
                "start inside, or give the set to project instead"
            )
        if outer is not None and not outer.contains(leaf, backend):
            raise ValueError(f"{path} starts at {_range(leaf)}, outside {outer}: move it inside")
    return Coordinates(backend=backend, within=within, onto=onto)


def _expand_prefix(prefix: Tree, lam: Tree, path: str) -> Iterator[Constraint | None]:
    """Yield the set of every leaf of λ, in order."""
    if prefix is None or isinstance(prefix, Constraint):
        yield from (prefix for _ in leaves(lam))
    elif isinstance(prefix, dict | list | tuple):
        below, expected = _children(prefix), _children(lam)
        if below.keys() != expected.keys():
            raise ValueError(
                f"{path} has entries {list(below)} where λ has {list(expected)}: give one for "
                "each, None where λ is free"
            )
        for key, child in expected.items():
            yield from _expand_prefix(below[key], child, f"{path}[{key!r}]")
    else:
        raise TypeError(f"{path} is a {type(prefix).__name__}: expected a set such as Positive()")


def _children(tree: Tree) -> dict[Any, Tree]:
    if isinstance(tree, dict):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, list | tuple) else {}


def _each(sets: Tree, tree: Tree, act: Callable[[Constraint, Array], Array]) -> Tree:
    """Apply a map to the leaves that have a set, and leave the others as they are.

    The dicts of the result are in the order of the sets, which is that of the λ at the start: some
    frameworks return them in another.
    """
    return map_leaves(lambda among, leaf: leaf if among is None else act(among, leaf), sets, tree)


def _range(leaf: Array) -> str:
    low, high = float(leaf.min()), float(leaf.max())
    return f"{low:.6g}" if low == high else f"values from {low:.6g} to {high:.6g}"
