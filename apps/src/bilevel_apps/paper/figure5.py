"""Figure 5: what a representation maps near and far."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.embed.figures import Figures, compare_with_pixels
from bilevel_apps.embed.pairs import Pair, extreme_pairs, pairs_figure
from bilevel_apps.embed.samples import Embedded, balanced, embed_episode, embed_images
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.trained.cells import data_name, held_out
from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.system.hardware import own_threads
from bilevel_data import Store
from bilevel_data.dataset import pixels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

OMNIGLOT, MINI = "omniglot", "mini-imagenet"
WEIGHTS = {
    OMNIGLOT: "pretrained:omniglot-5way-1shot",
    MINI: "pretrained:mini-imagenet-c4l-5way-1shot",
}
PAIRS = 5
COMPONENTS = 64
IMAGES = {False: 1000, True: 10_000}
CLASSES = 100


def run(work: Work) -> Report:
    """Draw the pairs of the first episodes, and count over all of them."""
    chosen = work.runs.get("") or Path(WEIGHTS.get(data_name(work.store), WEIGHTS[OMNIGLOT]))
    with own_threads():
        trained = load_run(chosen, "auto")
    store = trained.store(work.store)
    split = held_out(work.store)
    settings = {
        "weights": trained.sha256,
        "data": {name: info.sha256 for name, info in store.manifest.splits.items()},
        "split": split,
        "pairs": PAIRS,
        "images": IMAGES[work.full],
    }

    def compute(seed: int) -> dict[str, Any]:
        near, far, _ = _pairs(trained, store, split, seed)
        figures = _figures(trained, store, split, IMAGES[work.full], seed)
        return {
            "near": fmean(pair.distance for pair in near),
            "far": fmean(pair.distance for pair in far),
            "near_pixels": fmean(map(_pixel_distance, near)),
            "far_pixels": fmean(map(_pixel_distance, far)),
            "representation": figures.representation.named(),
            "pixels": figures.pixels.named(),
        }

    parts = work.by_seed(compute, settings)
    return Report(
        rows=_rows(parts),
        details=_details(parts),
        claims=_claims(parts),
        picture=partial(_draw, trained, store, split),
        settings={
            "run": _shown(chosen),
            "data": data_name(work.store),
            "pairs": f"of an upright episode of train and one of {split}, of the run's own kind; "
            "no image twice, and no pair of classes",
            "neighbours": f"within {IMAGES[work.full]} images of {split}, of {CLASSES} classes at "
            "most",
            "bars": f"{COMPONENTS} components of the features, drawn at random",
            "seeds": work.seeds,
        },
        cost={"episodes": 2 * len(parts), "seconds": sum(part.seconds for part in parts)},
        differs=TEXT.differs,
        metrics={"near": fmean(part.result["near"] for part in parts)},
    )


def _pairs(
    trained: TrainedRun, store: Store, split: str, seed: int
) -> tuple[list[Pair], list[Pair], int]:
    """Return the nearest and farthest pairs of an episode of each split, and the features' size."""
    samplers = [trained.sampler(store, s, seed=seed, rotations=False) for s in ("train", split)]
    a, b = (embed_episode(trained, sampler) for sampler in samplers)
    near, far = extreme_pairs(a, b, PAIRS)
    return near, far, a.features.shape[1]


def _figures(trained: TrainedRun, store: Store, split: str, count: int, seed: int) -> Figures:
    """Return how well features and pixels of some images of the split tell its classes apart."""
    found = store.load(split)
    labels = np.repeat(np.arange(found.num_classes), found.class_sizes)
    chosen = balanced(labels, count, np.random.default_rng(seed), classes=CLASSES)
    pixels = pixels_of(found.images[chosen])
    images: Embedded = embed_images(trained, pixels, labels[chosen], seed=seed)
    return compare_with_pixels(images, split)


def _pixel_distance(pair: Pair) -> float:
    """Return the root mean square difference of the pixels of a pair, within [0, 1]."""
    a, b = (image.astype(np.float64) / 255 for image in pair.images)
    return float(np.sqrt(((a - b) ** 2).mean()))


def _rows(parts: Sequence[Part]) -> list[Row]:
    def mean(kind: str, name: str) -> float:
        return fmean(part.result[kind][name] for part in parts)

    names = list(parts[0].result["pixels"])
    figures: list[Row] = [
        {"figure": name, "features": mean("representation", name), "pixels": mean("pixels", name)}
        for name in names
    ]
    return figures + [
        {
            "figure": f"distance of the {kind} pairs",
            "features": fmean(part.result[key] for part in parts),
            "pixels": fmean(part.result[f"{key}_pixels"] for part in parts),
        }
        for kind, key in (("nearest", "near"), ("farthest", "far"))
    ]


def _details(parts: Sequence[Part]) -> list[Row]:
    return [
        {
            "seed": seed,
            **{k: v for k, v in part.result.items() if isinstance(v, float)},
            **{
                f"{kind}_{name}": value
                for kind in ("representation", "pixels")
                for name, value in part.result[kind].items()
            },
        }
        for seed, part in enumerate(parts)
    ]


def _claims(parts: Sequence[Part]) -> list[Claim]:
    def better(text: str, name: str) -> Claim:
        ours, theirs = (
            [part.result[kind][name] for part in parts] for kind in ("representation", "pixels")
        )
        return Claim(
            text=f"{text}, with every seed",
            holds=all(a > b for a, b in zip(ours, theirs, strict=True)),
            found=f"means {fmean(ours):.3f} and {fmean(theirs):.3f}",
        )

    return [
        better(
            "the nearest image is of the same class more often by features than by pixels",
            "neighbour_accuracy",
        ),
        better(
            "classes are further apart for their width (silhouette) by features than by pixels",
            "silhouette",
        ),
    ]


def _draw(trained: TrainedRun, store: Store, split: str) -> Figure:
    near, far, dim = _pairs(trained, store, split, seed=0)
    components: NDArray[np.int64] = np.random.default_rng(0).permutation(dim)[:COMPONENTS]
    return pairs_figure(near, far, names=("train", split), components=np.sort(components))


def _shown(chosen: Path) -> str:
    return chosen.name if chosen.exists() else str(chosen)


ITEM = Item(
    name="figure5",
    title="What the representation maps near and far",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 3, Scale.FULL: 10},
    run=run,
    data=(OMNIGLOT, MINI),
    shows=True,
)
