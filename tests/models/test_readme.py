"""The example of the package's README runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "packages" / "models" / "README.md"


@pytest.mark.docs
def test_the_readme_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(README), "exec"), {})
    assert "torch.Size([2, 15, 5])" in capsys.readouterr().out
