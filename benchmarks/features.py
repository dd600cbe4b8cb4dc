"""How good and how fast are heads on stored features of a frozen backbone?

Accuracy on the same episodes, of a run of `--preset features`, of the nearest class mean and of
scikit-learn's logistic regression with its penalty by cross-validation; and the time that 10,000
episodes of 5-way 5-shot take, from the opened store to the accuracy.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from measuring import Verdict, device_of, finish, make_parser
from numpy.typing import NDArray

from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.scoring.baselines import nearest_means, regressions
from bilevel_apps.scoring.feature_table import feature_table
from bilevel_apps.scoring.heads import encoded_episodes, head_scores
from bilevel_data import EpisodeSampler, open_store

SHOTS, WAY, TIMED, LIMIT = (1, 5), 5, 10_000, 10.0


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """5-way tasks of so many pictures a class; accuracies in per cent, seconds of `TIMED`.

    Attributes:
        interval: half the 95 % interval of `learned`.
        over_means, over_regression: `learned` less that, and half the interval of the difference.
    """

    data: str
    split: str
    shot: int
    episodes: int
    learned: float
    interval: float
    means: float
    over_means: tuple[float, float]
    regression: float
    over_regression: tuple[float, float]
    seconds: float


def accuracies(run: TrainedRun, sampler: EpisodeSampler, episodes: int) -> NDArray[np.float64]:
    """Return the accuracy of the run's heads on each episode."""
    table = feature_table(run.learner, [sampler], episodes=episodes, device=run.device)
    found = head_scores(
        run.learner,
        sampler,
        inner=[run.inner],
        episodes=episodes,
        device=run.device,
        table=table,
    )
    return found.accuracies[run.inner]


def measure(run: TrainedRun, path: Path, split: str, shot: int, episodes: int, timed: int) -> Row:
    """Return the figures of one number of pictures."""
    store = open_store(path)
    sampler = run.sampler(store, split, seed=0, rotations=False, shot=shot, query=15)
    learned = 100 * accuracies(run, sampler, episodes)
    table = feature_table(run.learner, [sampler], episodes=episodes, device=run.device)
    batches = partial(encoded_episodes, run.learner, sampler, episodes, run.device, table)
    means, regression = 100 * nearest_means(batches(), WAY), 100 * regressions(batches())
    started = time.perf_counter()
    accuracies(run, replace(sampler, seed=1), timed)
    return Row(
        data=store.manifest.name,
        split=split,
        shot=shot,
        episodes=episodes,
        learned=float(learned.mean()),
        interval=_half(learned),
        means=float(means.mean()),
        over_means=_difference(learned - means),
        regression=float(regression.mean()),
        over_regression=_difference(learned - regression),
        seconds=time.perf_counter() - started,
    )


def _difference(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), _half(values)


def _half(values: NDArray[np.float64]) -> float:
    return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))


def main() -> None:
    """Measure each pair of a run and a store."""
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN=FEATURES.h5:SPLIT", help="of `--preset features`"
    )
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    if device_of(options) is None:
        return
    episodes, timed = (8, 40) if options.quick else (options.episodes, TIMED)
    rows = []
    for given in options.runs:
        folder, _, rest = given.partition("=")
        path, _, split = rest.rpartition(":")
        run = load_run(Path(folder), options.device)
        torch.set_num_threads(options.threads)  # a run brings its own
        for shot in SHOTS:
            row = measure(run, Path(path), split, shot, episodes, timed)
            rows.append(row)
            print(
                f"| {row.data} {split}, 5-way {shot}-shot | {row.learned:.2f} ± "
                f"{row.interval:.2f} | {row.means:.2f} | {row.over_means[0]:+.2f} ± "
                f"{row.over_means[1]:.2f} | {row.regression:.2f} | {row.over_regression[0]:+.2f} ± "
                f"{row.over_regression[1]:.2f} | {row.seconds:.1f} s |",
                flush=True,
            )
    slowest = max(row.seconds for row in rows if row.shot == max(SHOTS))
    claim = f"{TIMED:,} episodes of 5-way 5-shot take less than {LIMIT:.0f} s"
    met = None if options.quick else slowest < LIMIT
    finish(options, rows, [Verdict(claim=claim, met=met, figure=f"{slowest:.1f} s at most")])


if __name__ == "__main__":
    main()
