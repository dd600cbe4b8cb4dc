"""The result of an evaluation, and its JSON: what `bilevel-eval --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from bilevel_apps.runs.chosen_inner import ChosenInner
from bilevel_apps.scoring.score import Score
from bilevel_meta.methods.hyper_representation import InnerLoop

__all__ = [
    "CLASS_MEANS",
    "NEAREST",
    "RAW_PIXELS",
    "REGRESSION",
    "UNTRAINED",
    "CurvePoint",
    "EvaluationReport",
]

# The baselines.
RAW_PIXELS = "raw-pixel nearest neighbour"
NEAREST = "nearest neighbour"  # of features, where a store has no pixels
CLASS_MEANS = "nearest class mean"
REGRESSION = "logistic regression"
UNTRAINED = "untrained network"


@final
@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The accuracy at one T and η, on the episodes of the report.

    Attributes:
        inner: T and η.
        score: None where the inner runs diverge.
        difference: to the score at the run's own T and η, taken episode by episode.
        upright: the score on classes that are not rotated, where others count too.
    """

    inner: InnerLoop
    score: Score | None = None
    difference: Score | None = None
    upright: Score | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row of a report."""
        score = {"accuracy": None, "ci95": None} if self.score is None else _entry(self.score)
        difference = None if self.difference is None else _entry(self.difference)
        upright = {} if self.upright is None else {"upright": _entry(self.upright)}
        return {**self.inner._asdict(), **score, "difference": difference, **upright}

    @classmethod
    def of(cls, row: Mapping[str, Any], episodes: int) -> CurvePoint:
        """Return what `as_json` gave."""
        diverged = row["accuracy"] is None
        return cls(
            inner=InnerLoop(row["steps"], row["lr"]),
            score=None if diverged else _score(row, episodes),
            difference=None if diverged else _score(row["difference"], episodes),
            upright=_score(row["upright"], episodes) if "upright" in row else None,
        )


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """What a run comes to on the first episodes of a split.

    Attributes:
        score: of the run with its own T and η, or with the one of each that was asked for.
        calibration_error: how far probabilities are from the share of right answers; None in a
            report of an earlier version.
        head: how its heads are trained, in words.
        way, shot, query: of an episode.
        overlap: query images could be support images too; `trained_overlap`: in training.
        inner: T and η of the score; `trained_inner`: of the training.
        norm: whose statistics normalised; `trained_norm`: in training.
        shifts: pixels over which features were averaged.
        split, split_sha256: whose episodes, and of which images.
        seed: which episodes.
        rotations: rotated copies counted as classes.
        checkpoint, checkpoint_step, checkpoint_sha256: the weights.
        features: what made the features that a store has in the place of images.
        curve: the score at each of several T and η that were asked for.
        upright: the score on classes that are not rotated, where others count too.
        baselines: on the same episodes, by name; None where nobody asked.
        chosen: T and η that became the run's own.
        picture: the file that the curve was drawn to.
    """

    score: Score
    calibration_error: float | None
    head: str
    way: int
    shot: int
    query: int
    overlap: bool
    trained_overlap: bool
    inner: InnerLoop
    norm: str
    shifts: int
    trained_norm: str
    split: str
    split_sha256: str
    seed: int
    rotations: bool
    checkpoint: str
    checkpoint_step: int
    checkpoint_sha256: str
    trained_inner: InnerLoop
    features: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    upright: Score | None = None
    baselines: Mapping[str, Score] | None = None
    chosen: ChosenInner | None = None
    picture: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return one JSON object; what was not asked for is left out."""
        found = {
            **_entry(self.score),
            "calibration_error": self.calibration_error,
            "head": self.head,
            "episodes": self.score.episodes,
            **{key: getattr(self, key) for key in ("way", "shot", "query")},
            "overlap": self.overlap,
            "trained_overlap": self.trained_overlap,
            **self.inner._asdict(),
            **{key: getattr(self, key) for key in ("norm", "shifts", "trained_norm")},
            **{key: getattr(self, key) for key in ("split", "split_sha256", "seed", "rotations")},
            **{f"checkpoint{key}": getattr(self, f"checkpoint{key}") for key in _CHECKPOINT},
            "trained_steps": self.trained_inner.steps,
            "trained_lr": self.trained_inner.lr,
        }
        if self.features is not None:
            found["features"] = self.features
        if self.curve:
            found["curve"] = [point.as_json() for point in self.curve]
        if self.upright is not None:
            found["upright"] = _entry(self.upright)
        if self.baselines is not None:
            found["baselines"] = {name: self._baseline(x) for name, x in self.baselines.items()}
        if self.chosen is not None:
            found["chosen"] = self.chosen.document()
        if self.picture is not None:
            found["picture"] = self.picture
        return found

    def _baseline(self, found: Score) -> dict[str, Any]:
        fewer = found.episodes != self.score.episodes
        return _entry(found) | ({"episodes": found.episodes} if fewer else {})

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> EvaluationReport:
        """Return what `as_json` gave, of this version or an earlier one; other keys are left.

        Raises:
            ValueError: it is no such report.
        """
        try:
            return _parsed(found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no report of an evaluation: {error}") from None


_CHECKPOINT = ("", "_step", "_sha256")


def _parsed(found: Mapping[str, Any]) -> EvaluationReport:
    episodes = found["episodes"]
    upright, baselines, chosen = (found.get(key) for key in ("upright", "baselines", "chosen"))
    trained = InnerLoop(found.get("trained_steps", found["steps"]), found.get("trained_lr", 0.0))
    scores = None
    if baselines is not None:
        scores = {k: _score(v, v.get("episodes", episodes)) for k, v in baselines.items()}
    return EvaluationReport(
        score=_score(found, episodes),
        calibration_error=found.get("calibration_error"),
        head=found.get("head", ""),
        **{key: found[key] for key in ("way", "shot", "query", "norm", "split", "split_sha256")},
        **{key: found[key] for key in ("seed", "rotations", "checkpoint_sha256")},
        **{key: found.get(key, False) for key in ("overlap", "trained_overlap")},
        **{key: found.get(key, 0) for key in ("shifts", "checkpoint_step")},
        **{key: found.get(key, "") for key in ("trained_norm", "checkpoint")},
        inner=InnerLoop(found["steps"], found["lr"]),
        trained_inner=trained,
        features=found.get("features"),
        curve=tuple(CurvePoint.of(row, episodes) for row in found.get("curve", ())),
        upright=None if upright is None else _score(upright, episodes),
        baselines=scores,
        chosen=None if chosen is None else ChosenInner(**chosen),
        picture=found.get("picture"),
    )


def _entry(found: Score) -> dict[str, Any]:
    return {"accuracy": found.accuracy, "ci95": found.ci95}


def _score(row: Mapping[str, Any], episodes: int) -> Score:
    return Score(accuracy=row["accuracy"], ci95=row["ci95"], episodes=episodes)
