"""The walk-through: each of its commands, as it stands there, in an empty folder."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from bilevel_models import list_pretrained
from forked import run_alone, run_code

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "walkthrough.md"
SIGNS = ["arrow", "fish", "house", "ladder", "star"]
MOST_BYTES = 300_000


@dataclass(frozen=True)
class Block:
    """A fenced block: `sh`, `python` or `text`."""

    language: str
    text: str

    @property
    def installs(self):
        return "pip install" in self.text

    @property
    def file(self):
        """Its name, where the reader is told to save it."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named and named[1]


def blocks():
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language, text) for language, text in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walkthrough") / "here"
    folder.mkdir()
    return folder


def type_in(block, folder):
    """Do what the reader does with a block, line by line; returns what is printed."""
    if block.language == "python":
        return checked(run_code(block.text, folder))
    printed = []
    for line in block.text.splitlines():
        name, *arguments = shlex.split(line)
        if name == "python":
            ended = run_code((folder / arguments[0]).read_text("utf-8"), folder)
        else:
            ended = run_alone([name, *arguments], folder)
        printed.append(checked(ended))
    return "".join(printed)


def checked(ended):
    assert ended.status == 0, f"{ended.out}\n{ended.err}"
    return ended.out


@pytest.fixture(scope="module")
def outputs(folder):
    """Follow the page from its first block to its last; returns what each printed."""
    printed = {}
    for block in blocks():
        if block.file:
            (folder / block.file).write_text(block.text, "utf-8")
        elif block.language != "text" and not block.installs:
            printed[block.text] = type_in(block, folder)
    return printed


def printed_by(outputs, start):
    (text,) = (out for command, out in outputs.items() if command.startswith(start))
    return text


def labels(text):
    """Return the label of each picture in what bilevel-predict prints."""
    return dict(re.findall(r"^ +(\w+)\.png +(\w+) +[\d.]+ %", text, re.MULTILINE))


def test_the_installation_is_the_one_of_the_readme():
    (block,) = (block for block in blocks() if block.installs)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert block.text in readme
    for place in re.findall(r'"?\./([\w/]+)', block.text):
        assert (ROOT / place / "pyproject.toml").exists()


def test_pictures_are_there_and_small():
    names = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE.read_text("utf-8"))
    assert names
    for name in names:
        path = PAGE.parent / name
        assert path.stat().st_size < MOST_BYTES
        with Image.open(path) as image:
            assert image.width > 500


# Whichever of them comes first follows the page.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@forks
@pytest.mark.docs
def test_the_ten_pictures_get_their_names(outputs, folder):
    assert len(list(folder.glob("signs/*/1.png"))) == len(list(folder.glob("new/*.png"))) == 5
    found = labels(printed_by(outputs, "bilevel-predict pretrained:"))
    assert found == {name: name for name in SIGNS}
    (shown,) = filter(None, (labels(block.text) for block in blocks()))
    assert shown == found
    assert printed_by(outputs, "from pathlib").split() == str(SIGNS).replace(",", "").split()
    with Image.open(folder / "result.png") as image:
        assert image.format == "PNG"


@forks
@pytest.mark.docs
def test_the_cards_are_shown(outputs):
    assert "omniglot-5way-1shot omniglot-net" in printed_by(outputs, "from bilevel_models")


@forks
@pytest.mark.docs
def test_the_training_leaves_what_it_says(outputs, folder):
    assert (folder / "runs" / "short" / "best.safetensors").exists()
    assert (folder / "runs" / "short" / "pictures" / "map.html").stat().st_size > 10_000
    for start in ("bilevel-data prepare", "bilevel-eval pretrained:"):
        assert "5-way 1-shot, 200 episodes of test" in printed_by(outputs, start)
    compared = printed_by(outputs, "bilevel-train")
    assert "inner.steps" in compared
    assert "one-step" in compared


def test_the_weights_that_it_names_are_shipped():
    named = set(re.findall(r"pretrained:([\w-]+)", PAGE.read_text("utf-8")))
    assert named
    assert named <= {card.tag for card in list_pretrained()}


def test_what_the_page_names_exists():
    text = PAGE.read_text("utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (PAGE.parent / link).exists()
    scripts = set((ROOT / "apps" / "pyproject.toml").read_text("utf-8").split())
    for command in re.findall(r"\b(bilevel-\w+) (?:--help|[a-z])", text):
        assert command in scripts
