"""The page of all methods on glyphs is what its record says."""

import importlib
import json
from pathlib import Path

from bilevel_meta.registry import LEARNERS

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_record_and_every_method_has_a_recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    glyphs = importlib.import_module("glyphs")
    record = (ROOT / "docs/records/methods-glyphs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in record.splitlines()]
    assert {row["name"] for row in rows} <= glyphs.RECIPES.keys()
    own = {n for n, k in LEARNERS.items() if k.__module__.startswith("bilevel_meta.methods.")}
    assert {recipe.method for recipe in glyphs.RECIPES.values()} == own
    page = (ROOT / "docs/methods/glyphs.md").read_text(encoding="utf-8")
    assert page == glyphs.page(rows)
