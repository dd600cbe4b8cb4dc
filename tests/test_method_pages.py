"""The pages of all methods on glyphs and on Omniglot are what their records say."""

import importlib
import json
from pathlib import Path

import pytest

from bilevel_apps.config.load import list_presets, load_preset
from bilevel_meta.registry import LEARNERS

ROOT = Path(__file__).parents[1]
OWN = {name for name, k in LEARNERS.items() if k.__module__.startswith("bilevel_meta.methods.")}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", ["glyphs", "omniglot"])
def test_the_page_is_made_from_the_record(benchmark, name):
    record = (ROOT / f"docs/records/methods-{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in record.splitlines()]
    page = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    assert page == benchmark(name).page(rows)


def test_a_row_on_omniglot_is_what_its_cell_would_train_again(benchmark):
    omniglot = benchmark("omniglot")
    record = (ROOT / "docs/records/methods-omniglot.jsonl").read_text(encoding="utf-8")
    rows = {row["name"]: row for row in map(json.loads, record.splitlines())}
    assert rows.keys() == omniglot.CELLS.keys()
    for name, cell in omniglot.CELLS.items():
        assert rows[name]["train"] == omniglot.command(cell, quick=False)


def test_every_method_has_a_recipe_on_glyphs(benchmark):
    assert {recipe.method for recipe in benchmark("glyphs").RECIPES.values()} == OWN


def test_every_method_with_a_preset_has_a_row_on_omniglot(benchmark):
    cells = benchmark("omniglot").CELLS.values()
    trained = {load_preset(cell.preset)["method"] for cell in cells}
    assert trained == OWN
    assert {cell.preset for cell in cells} <= set(list_presets())
