"""The examples of the package's README run and do what they say."""

import re
from pathlib import Path

import pytest

from bilevel_core import check_hypergradient
from frameworks import jax

README = Path(__file__).parents[2] / "packages" / "core" / "README.md"
*EXAMPLES, LEARNED = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def test_there_is_an_example_for_each_framework():
    assert [("import torch" in e, "import jax" in e) for e in EXAMPLES] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.docs
@pytest.mark.parametrize("example", EXAMPLES, ids=["torch", "jax"])
def test_the_example_lowers_the_outer_objective(example, capsys):
    if "import jax" in example and jax is None:
        pytest.skip("jax is not installed (extra [jax])")
    lines = [
        line for line in example.splitlines() if line and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 20
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    run = names["run"]
    assert run.best_value < run.values[0]
    assert "->" in capsys.readouterr().out


@pytest.mark.docs
def test_learned_rates_and_starts():
    names = {}
    exec(compile(LEARNED, str(README), "exec"), names)
    checked = [names[key] for key in ("problem", "descent", "lam")]
    assert check_hypergradient(*checked, steps=5, directions=1).passes
