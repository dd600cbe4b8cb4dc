"""What mkdocs calls while it builds the site: pages that are made from the code, and formulas."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))  # the modules beside this one

from commands import command_pages  # noqa: E402
from configuration import keys_page, presets_page  # noqa: E402
from elsewhere import pages_from_elsewhere  # noqa: E402
from formulas import with_mathml  # noqa: E402
from names import name_pages  # noqa: E402
from tutorials import tutorial_page  # noqa: E402

REFERENCE = """# Reference

Everything on these pages is made from the code when the site is built.

- **Commands**: what each command takes, as `--help` says it.
- **[Configuration](configuration.md)**: every key of a run, its type and default.
- **[Presets](presets.md)**: the settings that come with the package.
- **Python**: every public name of the packages.
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation."""
    config.nav = _filled(config.nav, _generated())
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for place, content in _generated().items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Draw the formulas of a page."""
    return with_mathml(html)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the search index as a script too, for pages that are opened from a folder."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text('utf-8')}", "utf-8")


_pages: dict[str, str] = {}


def _generated() -> dict[str, str]:
    """Return every page that is made, by its place in the site."""
    if not _pages:
        sources = [*ROOT.glob("packages/*/src"), ROOT / "apps" / "src"]
        _pages["reference/index.md"] = REFERENCE
        _pages["reference/configuration.md"] = keys_page()
        _pages["reference/presets.md"] = presets_page()
        for name, page in command_pages(ROOT).items():
            _pages[f"reference/commands/{name}.md"] = page
        for name, page in name_pages(sources).items():
            _pages[f"reference/python/{name}.md"] = page
        for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
            _pages[f"tutorials/{script.stem}.md"] = tutorial_page(script)
        _pages.update(pages_from_elsewhere(ROOT))
    return _pages


def _filled(nav: object, pages: dict[str, str]) -> object:
    """Return a navigation in which `folder/` stands for the pages in it, made or written."""
    if isinstance(nav, list):
        return [_filled(entry, pages) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, pages) for title, entry in nav.items()}
    if isinstance(nav, str) and nav.endswith("/"):
        written = sorted(p.name for p in (ROOT / "docs" / nav).glob("*.md"))
        made = [{Path(page).stem: page} for page in pages if page.startswith(nav)]
        return [*(f"{nav}{name}" for name in written), *made]
    return nav
