"""What the root README says can be run: its example, and the names in its tables."""

import re
from pathlib import Path

import pytest

from bilevel_apps.config import list_presets
from bilevel_data import SOURCES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.docs
def test_the_example_prints_a_hypergradient(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"tensor\(\[.*\], dtype=torch.float64\)\n", capsys.readouterr().out)


def test_presets_sources_and_files_that_it_names_exist():
    named = set(re.findall(r"--preset ([\w/-]+)", README))
    assert named - {"NAME"} <= set(list_presets())
    assert named - {"NAME"}
    for source in SOURCES:
        assert f"`{source}`" in README
    paths = set(re.findall(r"`((?:packages|apps|tests|benchmarks|docs)/[\w./]+)`", README))
    paths |= set(re.findall(r"\]\(([\w./]+)\)", README))
    assert len(paths) > 8
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
