"""Imports point the right way: apps to meta, meta to core, models and data, which stay apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "bilevel_core": ROOT / "packages" / "core" / "src",
    "bilevel_models": ROOT / "packages" / "models" / "src",
    "bilevel_data": ROOT / "packages" / "data" / "src",
    "bilevel_meta": ROOT / "packages" / "meta" / "src",
    "bilevel_apps": ROOT / "apps" / "src",
}
FRAMEWORKS = {"torch", "torchvision", "jax"}


def imports(source):
    """The top-level modules that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            found |= {a.value.partition(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


def _called(function):
    return getattr(function, "attr", getattr(function, "id", None))


def sources(package):
    files = sorted((PACKAGES[package] / package).rglob("*.py"))
    assert files
    return files


def wrong(package, forbidden, allowed=()):
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in sorted(imports(path.read_text("utf-8")) & forbidden)
        if path.relative_to(PACKAGES[package] / package).as_posix() not in allowed
    ]


@pytest.mark.parametrize("package", ["bilevel_core", "bilevel_models", "bilevel_data"])
def test_packages_do_not_import_one_another(package):
    assert wrong(package, PACKAGES.keys() - {package}) == []


def test_apps_use_all_three():
    used = set().union(*(imports(p.read_text("utf-8")) for p in sources("bilevel_apps")))
    assert used >= {"bilevel_core", "bilevel_models", "bilevel_data"}


def test_meta_does_not_know_apps():
    assert wrong("bilevel_meta", {"bilevel_apps"}) == []


def test_core_meets_a_framework_in_its_adapter_alone():
    allowed = {f"backends/{name}.py" for name in FRAMEWORKS}
    assert wrong("bilevel_core", FRAMEWORKS, allowed) == []
    for path in sources("bilevel_core"):
        if path.parent.name == "backends" and path.stem in FRAMEWORKS:
            assert imports(path.read_text("utf-8")) & FRAMEWORKS == {path.stem}


def test_data_needs_no_framework():
    assert wrong("bilevel_data", FRAMEWORKS, {"sources/torchvision/library.py"}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package):
    """A relative import would slip past the checks above."""
    for path in sources(package):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        assert not [n.lineno for n in nodes if isinstance(n, ast.ImportFrom) and n.level], path


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "import torch.nn as nn",
        "from torch import Tensor",
        "from torch.nn import functional",
        "def f():\n    import torch",
        "import os, torch",
        "if TYPE_CHECKING:\n    from torch import Tensor",
        "importlib.import_module('torch.nn')",
        "__import__('torch')",
    ],
)
def test_every_way_to_import_is_seen(line):
    assert "torch" in imports(line)


def test_names_alone_are_no_import():
    assert imports("torch = 1\nprint('import torch')\nfrom . import torch") == set()
