"""Every command: a mistake is one line that says what was refused, what was found, what to do."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

APPS = Path(__file__).parents[2] / "apps"
SCRIPTS = tomllib.loads((APPS / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
# What is typed, and what the line must hold of it: what was refused, and what was found there.
MISTAKES = {
    "bilevel-data": (["prepare", "glyphs", "--out", "HERE"], ["HERE"]),
    "bilevel-train": (["--preset", "no-such", "--out", "run"], ["--preset", "no-such"]),
    "bilevel-eval": (["HERE", "--episodes", "2"], ["HERE"]),
    "bilevel-embed": (["HERE", "--out", "pictures"], ["HERE"]),
    "bilevel-tune": (["HERE/tuning.py", "--out", "found"], ["HERE/tuning.py"]),
    "bilevel-runs": (["list", "--uri", "sqlite:///HERE/none.db"], ["HERE/none.db"]),
    "bilevel-predict": (["HERE", "--support", "HERE", "--query", "HERE"], ["HERE"]),
    "bilevel-export": (["HERE", "--out", "program.pt2"], ["HERE"]),
    "bilevel-paper": (["table9", "--out", "paper"], ["table9"]),
}
REMEDY = re.compile(
    r"\b(add|change|choose|correct|[Dd]id you mean|expected|give|lower|make|name|use|train|try)\b"
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistake_is_one_line_with_a_remedy(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    typed, named = (
        [word.replace("HERE", str(here)) for word in words] for words in MISTAKES[script]
    )
    module, _, function = SCRIPTS[script].partition(":")
    monkeypatch.setattr(sys, "argv", [script, *typed])
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.match(r"error: \S.*[:.] \S", line)
    assert [words for words in named if words not in line] == []
    assert REMEDY.search(line), line
    assert list(tmp_path.iterdir()) == [here]
    assert not any(here.iterdir())
