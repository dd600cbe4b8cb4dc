"""The paper's tables and figures: the contract (item), the list (items), and a file an item."""

from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.registry import ITEMS, load_item

__all__ = ["ITEMS", "Claim", "Item", "Report", "Row", "Scale", "load_item"]
