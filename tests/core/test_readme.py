"""The examples of the package's README, and of the page on objectives of one's own, are right."""

import re
from pathlib import Path

import pytest

from bilevel_core import check_hypergradient, hypergradient
from frameworks import jax

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "core" / "README.md"
PAGE = ROOT / "docs" / "how-to" / "own-objective.md"

pytestmark = pytest.mark.docs


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def run(example, page):
    names = {}
    exec(compile(example, str(page), "exec"), names)
    return names


def test_there_is_an_example_for_each_framework():
    frameworks = [("import torch" in e, "import jax" in e) for e in examples(README)]
    assert frameworks == [(True, False), (False, True)]
    for example in examples(README):
        code = [x for x in example.splitlines() if x and not x.startswith(("import", "from"))]
        assert len(code) <= 13


def test_backward_is_the_hypergradient():
    names = run(examples(README)[0], README)
    problem, lam = names["problem"], names["lam"].detach()
    expected = hypergradient(problem, names["GradientDescent"](step_size=0.1), lam, steps=100)
    assert (names["lam"].grad - expected.grad).abs().max() < 1e-6


@pytest.mark.jax
@pytest.mark.skipif(jax is None, reason="jax is not installed (extra [jax])")
def test_grad_is_the_hypergradient():
    names = run(examples(README)[1], README)
    lam = names["lam"]
    expected = hypergradient(names["problem"], names["descent"], lam, steps=100)
    assert abs(names["gradient"](lam) - expected.grad).max() < 1e-5


def test_learned_rates_and_starts():
    names = run(examples(PAGE)[0], PAGE)
    checked = [names[key] for key in ("problem", "descent", "lam")]
    assert check_hypergradient(*checked, steps=5, directions=1).passes
