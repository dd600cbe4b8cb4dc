"""`FewShotClassifier`: a trained run behind scikit-learn's estimator interface."""

from __future__ import annotations

import math
import operator
import warnings
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[import-untyped]
from torch import Tensor

from bilevel_apps.predict.head import with_head
from bilevel_apps.runs.load import load_trained
from bilevel_apps.system.hardware import own_threads
from bilevel_meta.adapt import far_from

__all__ = ["FewShotClassifier"]


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that learns from a few images a class, by a meta-trained representation.

    `fit` makes a linear head on the features of the images; the representation stays as it is. Any
    number of classes, two or more, and of images a class, equal or not. Inductive: each image is
    classified by itself. Heads are those of the run: solved to their optimum, or trained by T steps
    where the run was, or where `steps` says so.

    Images are those of the run's data set: of its size and channels, prepared in its way
    (`bilevel_apps.predict.preparation` prepares files). They come as (n, height, width, channels),
    as (n, height, width) where they are grey, or flat as (n, height·width·channels); whole numbers
    are pixels of 0 … 255, others intensities of 0 … 1. NumPy's arrays, lists of them and torch's
    tensors will do.

    Args:
        run: the folder of a run, a checkpoint, or `pretrained:TAG`.
        device: `auto`, `cpu` or `cuda`.
        steps: T, inner steps of a fit, or "optimum"; None takes the run's. A step size that was
            learned for one image a class overshoots with several. The optimum of a run that was
            trained with T steps is estimated on its own store, which has to be where it was.
        step_size: η of these steps; None takes the run's.
        shifts: average each image's features over shifts by so many pixels, in nine times the time;
            0 takes the image as it is.

    After `fit`:
        classes_: the labels, sorted; columns of `predict_proba` are in this order.
        n_features_in_: height·width·channels.
        head_: the head, a `FewShotHead`.

    A run with `episode` normalisation takes the query images' statistics from all of them together;
    here the support images' are taken instead, and a `UserWarning` says so.
    """

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        steps: int | Literal["optimum"] | None = None,
        step_size: float | None = None,
        shifts: int = 0,
    ) -> None:
        self.run = run
        self.device = device
        self.steps = steps
        self.step_size = step_size
        self.shifts = shifts

    def fit(self, X: Any, y: Any) -> Self:
        """Train a head on labelled images.

        Args:
            X: images, see above.
            y: (n,) labels of any kind that scikit-learn takes.

        Raises:
            ValueError: images or labels that do not fit, one class only, a number of steps or a
                step size that cannot be, or no usable run.
            bilevel_models.heads.HeadDivergenceError: the training diverges.
        """
        steps, step_size = _head_steps(self.steps), _step_size(self.step_size)
        shifts = _steps(self.shifts, "shifts") or 0
        with own_threads():
            trained = load_trained(Path(self.run), self.device).over_shifts(shifts)
            trained.require_pictures("FewShotClassifier")
            learner = with_head(trained, steps=steps, step_size=step_size)
        self.image_shape_ = trained.image_shape
        rows, y = validate_data(self, self._flat(X), y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]}: give images of two or more")
        if not trained.learner.normalization.inductive:
            warnings.warn(
                "the run normalises query images by the statistics of all of them: here those of "
                "the support images are used, and its transductive accuracy will not be reached",
                UserWarning,
                stacklevel=2,
            )
        images = self._images(rows).to(trained.device)
        targets = torch.as_tensor(labels, device=trained.device)
        self.head_ = learner.adapt(images, targets, len(self.classes_))
        if (line := far_from(self.head_.surprise, str(trained.path), trained.step)) is not None:
            warnings.warn(line, UserWarning, stacklevel=2)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (n, classes), of images."""
        check_is_fitted(self)
        rows = validate_data(self, self._flat(X), reset=False)
        images = self._images(rows).to(self.head_.device)
        found: NDArray[np.float64] = self.head_.probabilities(images).cpu().numpy()
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each image, (n,)."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags

    def _flat(self, X: Any) -> Any:
        """Return images as rows; what is no array of images is for scikit-learn to check."""
        if isinstance(X, Tensor):
            X = X.detach().cpu()
        if isinstance(X, list | tuple | Tensor):
            X = np.asarray(X)
        if not isinstance(X, np.ndarray) or X.ndim < 3:
            return X
        found = X.shape[1:] if X.ndim > 3 else (*X.shape[1:], 1)
        if found != self.image_shape_:
            one = X.shape in (self.image_shape_, self.image_shape_[:2])
            raise ValueError(
                f"X has images of (height, width, channels) {found}, but the run was trained on "
                f"{self.image_shape_}: "
                + ("one image alone is X[None]" if one else "resize them as its data set was")
            )
        return X.reshape(len(X), math.prod(found))

    def _images(self, rows: NDArray[Any]) -> Tensor:
        """Return validated rows as (n, channels, height, width) in [0, 1]."""
        height, width, channels = self.image_shape_
        if rows.shape[1] != height * width * channels:
            raise ValueError(
                f"X has {rows.shape[1]} features, but the run was trained on images of "
                f"{height}×{width}×{channels} = {height * width * channels}"
            )
        limit = 255 if rows.dtype.kind in "iu" else 1
        if rows.min() < 0 or rows.max() > limit:
            what = "Negative values in data" if rows.min() < 0 else "Values too large"
            raise ValueError(
                f"{what}: X has values from {rows.min()} to {rows.max()}: give pixels of 0 … 255 "
                "as whole numbers, or intensities of 0 … 1"
            )
        pixels = rows.astype(np.float32).reshape(-1, height, width, channels)
        return torch.from_numpy(pixels).div_(limit).movedim(-1, -3)


def _head_steps(given: Any) -> tuple[int | None, ...]:
    """Return T, None for the optimum, or nothing for the run's own."""
    if isinstance(given, str) and given == "optimum":
        return (None,)
    steps = _steps(given)
    return () if steps is None else (steps,)


def _steps(given: Any, name: str = "steps") -> int | None:
    """Return a whole number, such as T, as a plain one, or refuse it."""
    try:
        steps = None if given is None else operator.index(given)
    except TypeError:
        steps = -1
    if steps is not None and steps < 0:
        raise ValueError(f"{name}={given!r}: expected a whole number from 0, or None for the run's")
    return steps


def _step_size(given: Any) -> float | None:
    """Return η as a plain number, or refuse it."""
    try:
        found = None if given is None else float(given)
    except (TypeError, ValueError):
        found = math.nan
    if found is not None and not 0 <= found < math.inf:
        raise ValueError(f"step_size={given!r}: expected a number from 0, or None for the run's")
    return found
