"""Labels for a person's own pictures, from a few labelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.predict.head import inner_used, with_head
from bilevel_apps.predict.picture import MOST_QUERIES, draw_prediction
from bilevel_apps.predict.preparation import (
    Pixels,
    fitted,
    inked,
    preparation_of,
    query_files,
    settled_ink,
    support_files,
)
from bilevel_apps.runs.load import TrainedRun, load_trained, steps_beyond
from bilevel_apps.system.files import check_writable, write_whole
from bilevel_apps.system.terminal import say, warn
from bilevel_data import Preprocessing
from bilevel_data.duplicates import image_keys, same_images, same_names
from bilevel_data.files.picture_folders import some
from bilevel_meta.adapt import FewShotLearner, OtherLearner, far_from
from bilevel_meta.methods.hyper_representation import InnerLoop
from bilevel_models import as_images

__all__ = ["PredictRequest", "Prediction", "as_document", "predict_pictures"]


@final
@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What to learn from, what to label, in which ink they are, and where to draw it.

    Attributes:
        steps: T of the head, or None for its optimum; () takes the run's own.
        lr: η of the head; None takes the run's own.
    """

    support: Path
    query: Path
    data: Path | None = None
    picture: Path | None = None
    top: int = 3
    ink: str = "auto"
    shifts: int = 0
    steps: tuple[int | None, ...] = ()
    lr: float | None = None
    device: str = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Labelled queries.

    Attributes:
        run: what labelled them.
        inner: T and η of the head.
        preparation: how pictures became images.
        support: the pictures of each class.
        query: the pictures that were labelled.
        support_images: (n, size, size, channels), class after class.
        query_images: (m, size, size, channels).
        probabilities: (m, classes), in the order of `support`.
        pages: the files that they were drawn in.
    """

    run: TrainedRun
    inner: InnerLoop
    preparation: Preprocessing
    support: Mapping[str, tuple[Path, ...]]
    query: tuple[Path, ...]
    support_images: Pixels
    query_images: Pixels
    probabilities: NDArray[np.float64]
    pages: tuple[Path, ...] = ()

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
    (support, beside), (query, stray) = support_files(request.support), query_files(request.query)
    _check_picture(request.picture, support, query)
    run = load_trained(trained, request.device).over_shifts(request.shifts)
    learner = with_head(run, steps=request.steps, step_size=request.lr, data=request.data)
    if line := steps_beyond(run, request.steps, request.lr):
        warn(line)
    known = preparation_of(run, request.data)
    labelled = fitted([file for files in support.values() for file in files], known)
    preparation, ink, said = settled_ink(request.ink, known, labelled)
    support_images = inked(labelled, preparation, ink)
    query_images = inked(fitted(query, known), preparation, ink)
    if said:
        say(said)
    _warn_of_files((*beside, *stray), support, support_images)
    if not run.learner.normalization.inductive:
        warn(
            "the run normalises queries by the statistics of all of them: here those of the "
            "support pictures are used, so that a picture alone gets the same answer as among many"
        )
    prediction = Prediction(
        run=run,
        inner=inner_used(run, learner),
        preparation=preparation,
        support=support,
        query=query,
        support_images=support_images,
        query_images=query_images,
        probabilities=_probabilities(run, learner, support, support_images, query_images),
    )
    if request.picture is None:
        return prediction
    return replace(prediction, pages=_draw(request.picture, prediction, request.top))


def as_document(prediction: Prediction) -> dict[str, Any]:
    """Return what `bilevel-predict --json` prints."""
    run = prediction.run
    return {
        "checkpoint": str(run.path),
        "checkpoint_sha256": run.sha256,
        "steps": prediction.inner.steps,
        "head": str(prediction.inner),
        "norm": run.config.model.norm,
        "shifts": run.shifts,
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
    run: TrainedRun,
    learner: FewShotLearner | OtherLearner,
    support: Mapping[str, tuple[Path, ...]],
    images: Pixels,
    queries: Pixels,
) -> NDArray[np.float64]:
    counts = torch.tensor([len(files) for files in support.values()])
    labels = torch.arange(len(support)).repeat_interleave(counts).to(run.device)
    try:
        head = learner.adapt(as_images(images, run.device), labels, len(support))
    except ArithmeticError as error:
        raise RunError(f"{run.path}: no head for these pictures: {error}") from error
    except ValueError as error:  # such as another number of classes than the method was made for
        raise InputError(f"{run.path}: {error}") from None
    if (line := far_from(head.surprise, str(run.path), run.step)) is not None:
        warn(line)
    found: NDArray[np.float64] = head.probabilities(as_images(queries, run.device)).cpu().numpy()
    return found


def _warn_of_files(
    strays: Sequence[Path], support: Mapping[str, tuple[Path, ...]], images: Pixels
) -> None:
    """Say what was passed over, and which picture or class is there twice."""
    if strays:
        warn(f"passed over {len(strays)} that are no pictures: {some(strays)}")
    for one, other in same_names(tuple(support)):
        warn(f"classes {one!r} and {other!r} differ in capitals or in Unicode's form alone")
    names = [name for name, files in support.items() for _ in files]
    files = [file for found in support.values() for file in found]
    twice = [(a, b) for a, b in same_images(image_keys(images)) if names[a] != names[b]]
    if twice:
        a, b = twice[0]
        warn(
            f"{len(twice)} pictures are in two classes, such as {files[a]} and {files[b]}: they "
            "are learned as both"
        )


def _check_picture(
    path: Path | None, support: Mapping[str, tuple[Path, ...]], query: tuple[Path, ...]
) -> None:
    """Refuse a drawing in a place that it must not take, before any work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise InputError(f"`picture`={path}: expected a name that ends in .png")
    try:
        ours = {file.resolve() for files in (*support.values(), query) for file in files}
        taken = any(p.is_dir() or p.resolve() in ours for p in page_files(path, len(query)))
    except OSError as error:  # such as a name that is too long
        raise InputError(
            f"`picture`={path}: cannot write here ({error.strerror}): choose another"
        ) from None
    if taken:
        raise InputError(f"`picture`={path}: is a folder or one of the pictures: choose another")
    check_writable(path.parent)


def _draw(path: Path, prediction: Prediction, top: int) -> tuple[Path, ...]:
    """Draw the queries by what they were taken for, the most certain first, on as many pages."""
    ends = np.cumsum([len(files) for files in prediction.support.values()])
    by_class = np.split(prediction.support_images, ends[:-1])
    best = prediction.probabilities.argmax(axis=1)
    order = np.lexsort((-prediction.probabilities.max(axis=1), best))
    pages = page_files(path, len(order))
    for page, file in enumerate(pages):
        rows = order[page * MOST_QUERIES : (page + 1) * MOST_QUERIES]
        drawn = draw_prediction(
            support=dict(zip(prediction.labels, by_class, strict=True)),
            query={
                prediction.query[row].name: (
                    prediction.query_images[row],
                    prediction.ranked(row)[:top],
                )
                for row in rows
            },
            inverted=prediction.preparation.inverted,
            total=len(order),
        )
        write_whole(file, partial(_write_bytes, drawn))
    return pages


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def page_files(path: Path, queries: int) -> tuple[Path, ...]:
    """Return the files that so many queries are drawn in: FILE.png, FILE-2.png, and so on."""
    pages = -(-queries // MOST_QUERIES)
    return (path, *(path.with_stem(f"{path.stem}-{page}") for page in range(2, pages + 1)))
