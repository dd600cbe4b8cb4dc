"""Check a built site: every link leads somewhere, and no page loads anything from a network."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, other than a link that a reader follows.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href")}
SEEN_BY_NOBODY = {"canonical", "alternate", "next", "prev"}


class Page(HTMLParser):
    """The anchors of a page and all that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag is called and what it names."""
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        for key in ("href", "src"):
            target = given.get(key)
            if target is not None:
                self.targets.add(target)
                if (tag, key) in LOADED and given.get("rel") not in SEEN_BY_NOBODY:
                    self.loads.add(target)


def faults(site: Path) -> list[str]:
    """Return a line for each link that leads nowhere and each thing that is fetched."""
    site = site.resolve()
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {t}" for t in sorted(page.loads) if urlsplit(t).netloc]
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            aim = aim / "index.html" if aim.is_dir() else aim
            if not aim.exists():
                found.append(f"{name}: {target} leads nowhere")
            elif not _has(pages.get(aim), unquote(parts.fragment)):
                found.append(f"{name}: {target} has no such place")
    return found


def _has(page: Page | None, anchor: str) -> bool:
    return page is None or not anchor or anchor in page.anchors


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]))
    sys.exit("\n".join(lines) or 0)
