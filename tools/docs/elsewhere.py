"""Pages whose text lies elsewhere in the repository, where other readers look for it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

__all__ = ["pages_from_elsewhere"]

# File of the repository: page of the site.
PAGES = {
    "SECURITY.md": "explain/security.md",
    "CONTRIBUTING.md": "contribute/contributing.md",
    "CHANGELOG.md": "contribute/changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def pages_from_elsewhere(root: Path) -> dict[str, str]:
    """Return the pages by their place in the site; links lead where the site has the target."""
    return {
        page: LINK.sub(
            lambda link, n=name, p=page: _link(link, n, p), (root / name).read_text("utf-8")
        )
        for name, page in PAGES.items()
    }


def _link(found: re.Match[str], name: str, page: str) -> str:
    """Return a link of a file as it is on its page; what the site does not have is text."""
    mark, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    if "://" in target:
        return found[0]
    place = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    inside = PAGES.get(place) or (
        place.removeprefix("docs/") if place.startswith("docs/") else None
    )
    if inside is None:
        return text
    return f"{mark}[{text}]({posixpath.relpath(inside, posixpath.dirname(page) or '.')}{anchor})"
