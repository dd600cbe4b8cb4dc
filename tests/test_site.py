"""The documentation: tutorials run, the reference names everything, links are checked."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from bilevel_apps.config import describe_keys, list_presets

ROOT = Path(__file__).parents[1]
SITE = ROOT / "tools" / "docs"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
MOST_BYTES = 300_000

pytestmark = pytest.mark.docs


@pytest.fixture(autouse=True)
def site_tools(monkeypatch):
    """Lets `importlib.import_module` find the modules that make the site."""
    monkeypatch.syspath_prepend(str(SITE))


def marked(script):
    uses_jax = "import jax" in script.read_text("utf-8")
    return pytest.param(script, id=script.stem, marks=[pytest.mark.jax] * uses_jax)


@pytest.mark.parametrize("script", [marked(script) for script in TUTORIALS])
def test_a_tutorial_runs(script, tmp_path):
    ended = subprocess.run(
        [sys.executable, str(SITE / "tutorials.py"), str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert any(json.loads(ended.stdout.splitlines()[-1]))  # a reader sees something come out


@pytest.mark.parametrize("script", [pytest.param(script, id=script.stem) for script in TUTORIALS])
def test_a_tutorial_begins_with_its_title(script):
    cells = importlib.import_module("tutorials").cells(script.read_text("utf-8"))
    prose, text = cells[0]
    assert prose
    assert text.startswith("# ")
    assert sum(not prose for prose, _ in cells) >= 2


def test_cells_keep_order_and_text():
    tutorials = importlib.import_module("tutorials")
    text = (
        "# %% [markdown]\n# # T\n#\n# - a\n#   b\n\n# %%\nx = 1\nprint(x)\n\n# %%\nprint(x + 1)\n"
    )
    assert tutorials.cells(text) == [
        (True, "# T\n\n- a\n  b"),
        (False, "x = 1\nprint(x)"),
        (False, "print(x + 1)"),
    ]
    assert tutorials.run_cells(text, "t.py") == ["", "1", "2"]


def test_every_key_has_a_heading():
    page = importlib.import_module("configuration").keys_page()
    headings = re.findall(r"^### (\S+) ", page, re.MULTILINE)
    assert headings == list(describe_keys())
    assert "Takes one of `cpu`" not in page.split("### device")[0]
    (device,) = re.findall(r"### device .*?\n\n.*?\n\n(.*?)\n", page, re.DOTALL)
    assert device == "Takes one of `auto`, `cpu`, `cuda`. Default: `auto`."


def test_every_preset_is_shown():
    page = importlib.import_module("configuration").presets_page()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == list(list_presets())


def test_every_command_has_a_page_with_its_options():
    pages = importlib.import_module("commands").command_pages(ROOT)
    scripts = tomllib.loads((ROOT / "apps" / "pyproject.toml").read_text("utf-8"))
    assert list(pages) == list(scripts["project"]["scripts"])
    assert "| `--resume` |" in pages["bilevel-train"]
    assert "## bilevel-data prepare" in pages["bilevel-data"]


@pytest.mark.parametrize("package", ["core", "models", "data", "meta"])
def test_every_public_name_has_an_entry(package):
    names = importlib.import_module("names")
    sources = [ROOT / "packages" / name / "src" for name in ("core", "models", "data", "meta")]
    pages = "\n".join([*names.name_pages(sources).values(), ""])
    module = importlib.import_module(f"bilevel_{package}")
    public = [
        n for n in getattr(module, "__all__", ()) if not hasattr(getattr(module, n), "__path__")
    ]
    entry = f"::: bilevel_{package}.{{0}}\n"
    missing = [n for n in public if entry.format(n) not in pages]
    assert [n for n in missing if entry.format(f"{n}.{n}") not in pages] == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#there">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><script src="//cdn.example.org/x.js"></script>'
    )
    assert importlib.import_module("check_site").faults(tmp_path) == [
        "a.html: loads //cdn.example.org/x.js",
        "a.html: b.html#there has no such place",
        "a.html: c.html leads nowhere",
    ]


def test_a_page_from_elsewhere_keeps_what_the_site_has():
    elsewhere = importlib.import_module("elsewhere")
    link = elsewhere.LINK.search("see [the tables](docs/results.md#accuracy).")
    assert elsewhere._link(link, "README.md", "explain/x.md") == (
        "[the tables](../results.md#accuracy)"
    )
    link = elsewhere.LINK.search("see [the code](apps).")
    assert elsewhere._link(link, "README.md", "explain/x.md") == "the code"


def test_pictures_are_small():
    pictures = [*ROOT.glob("docs/**/*.png"), *ROOT.glob("docs/**/*.svg")]
    assert pictures
    assert [p.name for p in pictures if p.stat().st_size >= MOST_BYTES] == []


def sessions():
    text = (ROOT / "noxfile.py").read_text("utf-8")
    named = re.findall(r'@nox\.session\(name="([\w-]+)"', text)
    return {*named, *re.findall(r"@nox\.session(?:\(.*\))?\ndef (\w+)\(", text)}


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda p: p.stem)
def test_a_workflow_runs_sessions_that_there_are(path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    named = {found for s in steps for found in re.findall(r"nox -s ([\w-]+)", s.get("run", ""))}
    assert named <= sessions()
    assert workflow["permissions"] == {"contents": "read"}  # jobs ask for more where they need it


def test_checks_cover_what_the_packages_promise():
    jobs = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))["jobs"]
    for name in ("quality", "tests", "bounds"):
        matrix = jobs[name]["strategy"]["matrix"]
        assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
        assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert jobs["bounds"]["strategy"]["matrix"]["versions"] == ["oldest", "newest"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    for path in [*ROOT.glob("packages/*/pyproject.toml"), ROOT / "apps" / "pyproject.toml"]:
        assert tomllib.loads(path.read_text("utf-8"))["project"]["version"] == citation["version"]
    assert citation["preferred-citation"]["year"] == 2018


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")))
def test_templates_can_be_read(path):
    template = yaml.safe_load(path.read_text("utf-8"))
    assert template.get("body") or path.stem == "config"
