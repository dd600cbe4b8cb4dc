"""All that `bilevel-embed` draws and counts."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.drawing.style import DPI
from bilevel_apps.embed.figures import Figures, compare_with_pixels
from bilevel_apps.embed.map import draw_map
from bilevel_apps.embed.neighbours import draw_wall, nearest
from bilevel_apps.embed.page import html_page
from bilevel_apps.embed.pairs import draw_pairs, extreme_pairs
from bilevel_apps.embed.projection import Projection, principal_components, tsne
from bilevel_apps.embed.samples import Embedded, balanced, embed_episode, embed_images
from bilevel_apps.runs.load import TrainedRun, load_run, require_split
from bilevel_apps.system.files import check_writable, write_files
from bilevel_apps.system.terminal import say
from bilevel_data import Store
from bilevel_data.dataset import pixels_of

__all__ = ["EmbedRequest", "Embedding", "embed_run"]

COMPARED_IMAGES, COMPARED_CLASSES = 2000, 100
MAP_IMAGES = 200
COMPONENTS = 64


@final
@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What to look at.

    Attributes:
        data: another store than the run's.
        split_a: of the blue images of the pairs.
        split_b: of the green ones, and of everything else.
        seed: which episodes, queries and classes.
        pairs: how many of each kind.
        queries: rows of the wall.
        neighbours: columns of the wall.
        classes: on the map.
        images: of the split, at most, equally many of each class.
        tsne: also a map by t-SNE.
        dpi: dots an inch of the pictures.
        device: where to compute.
    """

    data: Path | None = None
    split_a: str = "train"
    split_b: str = "test"
    seed: int = 0
    pairs: int = 5
    queries: int = 8
    neighbours: int = 10
    classes: int = 7
    images: int = 10_000
    tsne: bool = False
    dpi: int = DPI
    device: str = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What was written, in the order in which it is worth a look, and what was counted."""

    files: tuple[Path, ...]
    figures: Figures


Arrays = dict[str, NDArray[Any]]


def embed_run(folder: Path, out: Path, request: EmbedRequest) -> Embedding:
    """Draw a run's representation and write the pictures: all of them, or none.

    Raises:
        InputError: the run, the store, or the folder to write to cannot be used.
        RunError: a file cannot be written.
        bilevel_data.DataError: the store cannot be used.

    Cost: a forward pass over `request.images` images.
    """
    check_writable(out)
    run = load_run(folder, request.device)
    run.require_pictures("bilevel-embed")
    store = run.store(request.data)
    require_split(store, request.split_a, "split_a")
    require_split(store, request.split_b, "split_b")
    pairs, arrays = _pairs(run, store, request)
    images, names, more = _images_of(run, store, request)
    rng = np.random.default_rng(request.seed)
    wall = _wall(images, rng, request)
    compared = balanced(images.labels, COMPARED_IMAGES, rng, classes=COMPARED_CLASSES)
    figures = compare_with_pixels(images.of(compared), request.split_b)
    shown = balanced(images.labels, MAP_IMAGES, rng, classes=request.classes)
    maps, points = _maps(images.of(shown), names, figures, request, title=folder.resolve().name)
    arrays |= more | points | {"map_images": shown}
    files = {"pairs.png": pairs, "neighbours.png": wall, **maps, "embeddings.npz": _npz(arrays)}
    return Embedding(files=tuple(write_files(out, files)), figures=figures)


def _pairs(run: TrainedRun, store: Store, request: EmbedRequest) -> tuple[bytes, Arrays]:
    """Find and draw the pairs of an episode of each split."""
    splits = (request.split_a, request.split_b)
    # Upright: that is how a person compares characters. Of one split, two different episodes.
    seeds = (request.seed, request.seed + (request.split_a == request.split_b))
    samplers = [
        run.sampler(store, split, seed=seed, rotations=False)
        for split, seed in zip(splits, seeds, strict=True)
    ]
    a, b = (embed_episode(run, sampler) for sampler in samplers)
    dim = a.features.shape[1]
    components = np.random.default_rng(request.seed).permutation(dim)[:COMPONENTS]
    nearest_ones, farthest_ones = extreme_pairs(a, b, request.pairs)
    picture = draw_pairs(
        nearest_ones, farthest_ones, names=splits, components=np.sort(components), dpi=request.dpi
    )
    arrays: Arrays = {}
    for name, episode in (("a", a), ("b", b)):
        arrays[f"pair_features_{name}"] = episode.features
        arrays[f"pair_labels_{name}"] = episode.labels
    for name, pairs in (("nearest", nearest_ones), ("farthest", farthest_ones)):
        arrays[f"pair_{name}"] = np.array([pair.numbers for pair in pairs])
        arrays[f"pair_{name}_distance"] = np.array([pair.distance for pair in pairs])
    return picture, arrays


def _images_of(
    run: TrainedRun, store: Store, request: EmbedRequest
) -> tuple[Embedded, tuple[str, ...], Arrays]:
    """Encode the images of the split; returns also the names of its classes."""
    split = store.load(request.split_b)
    labels = np.repeat(np.arange(split.num_classes), split.class_sizes)
    chosen = balanced(labels, request.images, np.random.default_rng(request.seed))
    say(f"encoding {len(chosen):,} images of {request.split_b}")
    images = embed_images(run, pixels_of(split.images[chosen]), labels[chosen], seed=request.seed)
    arrays: Arrays = {
        "features": images.features,
        "labels": images.labels,
        "images": chosen,
        "class_names": np.array(split.class_names),
    }
    return images, split.class_names, arrays


def _wall(images: Embedded, rng: np.random.Generator, request: EmbedRequest) -> bytes:
    queries = rng.permutation(len(images.labels))[: request.queries]
    count = min(request.neighbours, len(images.labels) - 1)
    found = nearest(images.features, queries, count)
    return draw_wall(images, queries, found, split=request.split_b, dpi=request.dpi)


def _maps(
    images: Embedded,
    class_names: tuple[str, ...],
    figures: Figures,
    request: EmbedRequest,
    *,
    title: str,
) -> tuple[dict[str, bytes], Arrays]:
    """Draw the projections, and the page that holds them all."""
    kept, numbers = np.unique(images.labels, return_inverse=True)
    images = Embedded(pixels=images.pixels, features=images.features, labels=numbers)
    names = [class_names[label] for label in kept]
    projections: list[Projection] = [principal_components(images.features)]
    if request.tsne:
        projections.append(tsne(images.features, seed=request.seed))
    files: dict[str, bytes] = {}
    arrays: Arrays = {}
    for found in projections:
        name = found.name.lower().replace("-", "")
        files[f"map-{name}.png"] = draw_map(
            images, found, names=names, split=request.split_b, dpi=request.dpi
        )
        arrays[f"map_{name}"] = found.points
    files["map.html"] = html_page(
        images,
        projections[::-1],
        names=names,
        title=f"{title}: {len(names)} random classes of {request.split_b}",
        figures=figures,
    )
    return files, arrays


def _npz(arrays: Arrays) -> bytes:
    content = BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()
