"""The README's example runs, and the package keeps to its dependencies."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "packages" / "data" / "README.md"


@pytest.mark.docs
def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    there = importlib.util.find_spec("torch") is not None  # which the package does without
    kept = [block for block in blocks if there or "import torch" not in block]
    assert len(kept) >= 2
    scope = {}
    for block in kept:
        exec(compile(block, str(README), "exec"), scope)


@pytest.mark.process
def test_import_is_light():
    code = "import sys, bilevel_data; print(*{'torch', 'jax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
