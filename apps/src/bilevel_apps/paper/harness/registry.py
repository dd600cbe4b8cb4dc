"""The items there are. To add one, write its file and two lines here."""

from __future__ import annotations

from importlib import import_module

from bilevel_apps.errors import InputError
from bilevel_apps.paper.harness.item import Item

__all__ = ["ITEMS", "load_item"]

ITEMS = {
    "table2": "the work of a hypergradient against T (section 5.1)",
    "figure3": "the outer objectives f_T and f while a linear feature map is tuned (section 5.1)",
    "figure4": "the test accuracy while a linear feature map is tuned (section 5.1)",
    "table3": "few-shot accuracy of the hyper-representation (section 5.2)",
    "table4": "the hyper-representation beside its variants (section 5.3)",
    "table5": "ridge regression with a penalty a feature: the effect of T (Appendix C)",
    "appendix-b": "K-fold cross-validation as a bilevel problem, beside grid search",
    "figure1": "the bilevel problem in a picture, of a problem that is solved",
    "figure5": "what the representation maps near and far",
    "figure6": "the meta-validation of T, the number of inner steps",
}
"""Names and what they are."""

_MODULES = {
    "table2": "effect_of_t.table2",
    "figure3": "effect_of_t.figure3",
    "figure4": "effect_of_t.figure4",
    "table3": "trained.table3",
    "table4": "trained.table4",
    "table5": "ridge.table5",
    "appendix-b": "ridge.appendix_b",
    "figure1": "figure1",
    "figure5": "figure5",
    "figure6": "trained.figure6",
}
"""The module whose `ITEM` each of them is."""


def load_item(name: str) -> Item:
    """Return an item by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ITEMS:
        raise InputError(f"{name}: no such item: expected one of {', '.join(ITEMS)}")
    module = import_module(f"bilevel_apps.paper.{_MODULES[name]}")
    item: Item = module.ITEM
    return item
