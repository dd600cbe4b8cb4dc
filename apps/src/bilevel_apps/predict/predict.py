"""Labels for a person's own pictures, from a few labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.predict.picture import draw_prediction
from bilevel_apps.predict.preparation import (
    Pixels,
    Preparation,
    preparation_of,
    query_files,
    support_files,
)
from bilevel_apps.runs.few_shot import load_trained
from bilevel_apps.runs.load import TrainedRun
from bilevel_apps.system.files import check_writable, write_whole
from bilevel_apps.system.terminal import warn
from bilevel_meta.adapt import learner_of
from bilevel_models import as_images, heads

__all__ = ["PredictRequest", "Prediction", "as_document", "predict_pictures"]


@final
@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What to learn from, what to label, and where to draw it."""

    support: Path
    query: Path
    data: Path | None = None
    picture: Path | None = None
    top: int = 3
    device: str = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Labelled queries.

    Attributes:
        run: what labelled them.
        preparation: how pictures became images.
        support: the pictures of each class.
        query: the pictures that were labelled.
        support_images: (n, size, size, channels), class after class.
        query_images: (m, size, size, channels).
        probabilities: (m, classes), in the order of `support`.
    """

    run: TrainedRun
    preparation: Preparation
    support: Mapping[str, tuple[Path, ...]]
    query: tuple[Path, ...]
    support_images: Pixels
    query_images: Pixels
    probabilities: NDArray[np.float64]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.support)

    def ranked(self, row: int) -> list[tuple[str, float]]:
        """Return the labels of a query with their probabilities, the most probable first."""
        p = self.probabilities[row]
        return [(self.labels[c], float(p[c])) for c in np.argsort(-p, kind="stable")]


def predict_pictures(trained: Path, request: PredictRequest) -> Prediction:
    """Adapt a head to the labelled pictures of `request.support` and label the others.

    Args:
        trained: the folder of a run, a checkpoint, or `pretrained:TAG`.
        request: the pictures.

    Raises:
        InputError: the run, a folder or a file cannot be used.
        RunError: the head's training diverges, or the drawing cannot be written.
        bilevel_data.DataError: a picture or the store cannot be used.
    """
    support, query = support_files(request.support), query_files(request.query)
    _check_picture(request.picture, support, query)
    run = load_trained(trained, request.device)
    preparation = preparation_of(run, request.data)
    support_images = preparation.images([file for files in support.values() for file in files])
    query_images = preparation.images(query)
    if not run.task.encoder.normalization.inductive:
        warn(
            "the run normalises queries by the statistics of all of them: here those of the "
            "support pictures are used, so that a picture alone gets the same answer as among many"
        )
    prediction = Prediction(
        run=run,
        preparation=preparation,
        support=support,
        query=query,
        support_images=support_images,
        query_images=query_images,
        probabilities=_probabilities(run, support, support_images, query_images),
    )
    if request.picture is not None:
        _draw(request.picture, prediction, request.top)
    return prediction


def as_document(prediction: Prediction) -> dict[str, Any]:
    """Return what `bilevel-predict --json` prints."""
    run = prediction.run
    return {
        "checkpoint": str(run.path),
        "checkpoint_sha256": run.sha256,
        "steps": run.task.steps,
        "norm": run.config.model.norm,
        "inverted": prediction.preparation.inverted,
        "support": {name: [str(f) for f in files] for name, files in prediction.support.items()},
        "queries": [
            {
                "file": str(file),
                "label": prediction.ranked(row)[0][0],
                "probabilities": dict(prediction.ranked(row)),
            }
            for row, file in enumerate(prediction.query)
        ],
    }


def _probabilities(
    run: TrainedRun, support: Mapping[str, tuple[Path, ...]], images: Pixels, queries: Pixels
) -> NDArray[np.float64]:
    counts = torch.tensor([len(files) for files in support.values()])
    labels = torch.arange(len(support)).repeat_interleave(counts).to(run.device)
    try:
        head = learner_of(run.task).adapt(as_images(images, run.device), labels, len(support))
    except heads.HeadDivergenceError as error:
        raise RunError(f"{run.path}: no head for these pictures: {error}") from error
    found: NDArray[np.float64] = head.probabilities(as_images(queries, run.device)).cpu().numpy()
    return found


def _check_picture(
    path: Path | None, support: Mapping[str, tuple[Path, ...]], query: tuple[Path, ...]
) -> None:
    """Refuse a drawing in a place that it must not take, before any work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise InputError(f"--picture {path}: expected a name that ends in .png")
    try:
        taken = path.is_dir() or path.resolve() in {
            file.resolve() for files in (*support.values(), query) for file in files
        }
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--picture {path}: cannot write here ({error.strerror})") from None
    if taken:
        raise InputError(f"--picture {path}: is a folder or one of the pictures: choose another")
    check_writable(path.parent)


def _draw(path: Path, prediction: Prediction, top: int) -> None:
    ends = np.cumsum([len(files) for files in prediction.support.values()])
    by_class = np.split(prediction.support_images, ends[:-1])
    queries = zip(prediction.query, prediction.query_images, strict=True)
    drawn = draw_prediction(
        support=dict(zip(prediction.labels, by_class, strict=True)),
        query={
            file.name: (image, prediction.ranked(row)[:top])
            for row, (file, image) in enumerate(queries)
        },
        inverted=prediction.preparation.inverted,
    )
    write_whole(path, lambda scratch: scratch.write_bytes(drawn))
