"""What the root README says can be run: its examples, its commands, and the names in it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tools.results import BEGIN, END

from bilevel_apps.config import list_presets
from bilevel_data import load_source, write_store
from forked import run_alone

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES, MOST_WORDS = 150, 1300

# What makes each command short enough for a test; the words before are the README's.
SHORT = {
    "bilevel-train": (
        *("--set", "train.steps=2", "--set", "train.way=5", "--set", "train.query=2"),
        *("--set", "train.validate_episodes=2", "--set", "threads=1"),
    ),
    "bilevel-eval": ("--episodes", "5"),
    "bilevel-embed": ("--images", "100"),
}

pytestmark = pytest.mark.docs


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command of the README, in order: those of blocks, and those in a line of text."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    lines += [found for found in re.findall(r"`([^`]+)`", prose) if " -" in found]
    return [shlex.split(line) for line in lines]


def test_it_is_short():
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.split()) <= MOST_WORDS


def test_every_figure_stands_between_the_marks_of_the_records():
    text = README.partition(BEGIN)[0] + README.partition(END)[2]
    assert re.findall(r"[\d.]+ ?(?:%|± ?[\d.]+|ms|seconds|minutes|times)", text) == []


def test_the_first_example_prints_a_hypergradient(capsys):
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert re.fullmatch(r"tensor\(\[.*\]\)\n", capsys.readouterr().out)


def test_the_second_example_trains_a_learner(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_store("glyphs.h5", load_source("glyphs"))
    short = blocks("python")[1]
    for long, quick in (("steps=500", "steps=2"), ("episodes=600", "episodes=4")):
        assert long in short
        short = short.replace(long, quick)
    exec(compile(short, "README.md", "exec"), {})
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ %\n", capsys.readouterr().out)
    assert (tmp_path / "glyphs.safetensors").exists()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_every_command_runs(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    own = [words for words in commands() if words[0].startswith("bilevel-")]
    assert {words[0] for words in own} >= {"bilevel-data", "bilevel-train", "bilevel-eval"}
    for words in own:
        short = SHORT.get(words[0], ()) if "--resume" not in words else ()
        ended = run_alone([*words, *short], folder)
        assert ended.status == 0, f"{words}\n{ended.out}\n{ended.err}"
    assert (folder / "runs/glyphs/pictures/pairs.png").exists()


@pytest.mark.nightly
def test_the_demo_runs():
    subprocess.run([sys.executable, "-m", "nox", "-s", "demo"], cwd=ROOT, check=True)


def test_the_rest_of_its_commands_are_sessions_and_the_installation():
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    rest = [words for words in commands() if not words[0].startswith("bilevel-")]
    for words in rest:
        if "nox" in words and "-s" in words:
            assert f"def {words[words.index('-s') + 1]}(" in noxfile
        elif words[:2] == ["pip", "install"]:
            places = [word.partition("[")[0] for word in words if word.startswith("./")]
            packages = {p.parent.relative_to(ROOT).as_posix() for p in package_files()}
            assert {place.removeprefix("./") for place in places} == packages
        else:
            assert words[:3] == ["python3", "-m", "venv"]


def package_files():
    return [*ROOT.glob("packages/*/pyproject.toml"), ROOT / "apps" / "pyproject.toml"]


def test_presets_and_files_that_it_names_exist():
    named = set(re.findall(r"--preset ([\w/-]+)", README))
    assert named
    assert named <= set(list_presets())
    paths = set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert len(paths) > 8
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
