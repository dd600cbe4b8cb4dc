"""What the same features give without a head of ours: the baselines of an evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.scoring.heads import Encoded
from bilevel_models import heads

__all__ = ["nearest_means", "regress", "regressions"]

PENALTIES = np.logspace(-1, 5, 7)  # inverse, as scikit-learn takes them
FOLDS = 3


def nearest_means(batches: Iterable[Encoded], way: int) -> NDArray[np.float64]:
    """Return the accuracy of each episode by the nearest class mean.

    Source: Prototypical Networks for Few-shot Learning (Snell, Swersky, Zemel, 2017), section 2.3.
    """
    found = []
    for batch in batches:
        targets = heads.one_hot(batch.support_labels, way, batch.support)
        scores = heads.logits(heads.class_means(batch.support, targets), batch.query)
        found.append(heads.accuracy(scores, batch.query_labels).cpu().numpy())
    return np.concatenate(found)


def regressions(batches: Iterable[Encoded]) -> NDArray[np.float64]:
    """Return the accuracy of each episode by scikit-learn's logistic regression.

    Its penalty is chosen by cross-validation, where each class has two images or more.
    """
    found = []
    for batch in batches:
        rows = (batch.support, batch.support_labels, batch.query, batch.query_labels)
        found += [regress(*episode) for episode in zip(*rows, strict=True)]
    return np.array(found)


def regress(support: Tensor, labels: Tensor, query: Tensor, truth: Tensor) -> float:
    """Return the accuracy of one episode, of features (n, dim) and (m, dim) and their labels.

    The weights lie in the span of the support features, so it is enough to fit them there: the same
    optimum, in as many dimensions as there are images.
    """
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import (  # type: ignore[import-untyped]
        LogisticRegression,
        LogisticRegressionCV,
    )

    folds = min(FOLDS, int(labels.bincount().min()))
    chosen: dict[str, Any] = {"class_weight": "balanced", "max_iter": 200}
    if folds < 2:
        model = LogisticRegression(C=100.0, **chosen)
    else:
        chosen |= {"Cs": PENALTIES, "cv": folds, "scoring": "neg_log_loss", "l1_ratios": (0,)}
        model = LogisticRegressionCV(use_legacy_attributes=False, **chosen)
    known, asked = (x.double().cpu().numpy() for x in (support, query))
    if known.shape[0] < known.shape[1]:
        span = np.linalg.qr(known.T).Q
        known, asked = known @ span, asked @ span
    with warnings.catch_warnings():
        # Where a weak penalty leaves the optimum far away, the answers stand long before it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known, labels.cpu().numpy())
    return float((model.predict(asked) == truth.cpu().numpy()).mean())
