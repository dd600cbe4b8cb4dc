"""The example of the package's README runs and does what it says."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "packages" / "core" / "README.md"


def test_the_readme_example_lowers_the_outer_objective(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    run = names["run"]
    assert run.values[-1] < run.values[0]
    assert "->" in capsys.readouterr().out
