"""Formulas as MathML, which browsers draw themselves: no script and no fonts to load."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_mathml"]

# What pymdownx.arithmatex leaves for a script to find.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def with_mathml(page: str) -> str:
    """Return a page's HTML with MathML in the place of LaTeX."""
    page = INLINE.sub(lambda found: _drawn(found[1], "inline"), page)
    return BLOCK.sub(lambda found: f'<div class="formula">{_drawn(found[1], "block")}</div>', page)


def _drawn(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
