"""The map as one HTML page that needs no network: zoom, pan, and what lies under the pointer."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from importlib import resources
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.drawing.style import text_on
from bilevel_apps.embed.figures import Figures
from bilevel_apps.embed.map import class_colour
from bilevel_apps.embed.neighbours import nearest
from bilevel_apps.embed.projection import Projection
from bilevel_apps.embed.samples import Embedded

__all__ = ["html_page"]

TILE = 64  # pixels, at most: 400 images of nothing but noise stay under 3 MB
NEIGHBOURS = 6
DIGITS = 5


def html_page(
    images: Embedded,
    projections: Sequence[Projection],
    *,
    names: list[str],
    title: str,
    figures: Figures,
) -> bytes:
    """Return the page, with every image inside it.

    Args:
        images: with labels 0 … len(names) - 1.
        projections: one or more, to change between.
        names: of the classes.
        title: a line of text.
        figures: to stand beside the map.
    """
    atlas, tile, columns = _atlas(images.pixels)
    every = np.arange(len(images.labels))
    count = min(NEIGHBOURS, len(every) - 1)
    content = {
        "title": title,
        "figures": {"heading": figures.heading(), "rows": figures.rows()},
        "names": names,
        "colours": [class_colour(number) for number in range(len(names))],
        "texts": [text_on(class_colour(number)) for number in range(len(names))],
        "labels": images.labels.tolist(),
        "maps": [_map(projection) for projection in projections],
        "neighbours": nearest(images.features, every, count).tolist(),
        "ink": images.pixels.shape[-1] == 1,
        "atlas": {"image": atlas, "tile": tile, "columns": columns},
    }
    # Nothing in a name may end the script that it stands in.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = (resources.files("bilevel_apps.embed") / "page.html").read_text("utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{data}}", data)
    return page.encode()


def _map(projection: Projection) -> dict[str, Any]:
    points = np.round(projection.points / np.abs(projection.points).max().clip(1e-12), DIGITS)
    return {"name": projection.name, "axes": projection.axes, "points": points.tolist()}


def _atlas(pixels: NDArray[np.uint8]) -> tuple[str, int, int]:
    """Return all images side by side as a data URI, the side of one, and how many are in a row.

    Grey images become ink on nothing, which the page gives the colour of a class.
    """
    from PIL import Image

    tile = min(TILE, pixels.shape[1])
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    grey = pixels.shape[-1] == 1
    sheet = Image.new("L" if grey else "RGB", (columns * tile, rows * tile))
    for k, image in enumerate(pixels):
        picture = Image.fromarray(image[..., 0] if grey else image)
        if picture.width != tile:
            picture = picture.resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(picture, (k % columns * tile, k // columns * tile))
    content = BytesIO()
    if grey:
        Image.merge("LA", (Image.new("L", sheet.size), sheet)).save(content, "PNG", optimize=True)
    else:
        sheet.save(content, "JPEG", quality=80)
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{'png' if grey else 'jpeg'};base64,{text}", tile, columns
