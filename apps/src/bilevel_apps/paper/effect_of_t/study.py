"""Section 5.1, the effect of T: what Table 2 and Figures 3 and 4 are views of, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, final

from bilevel_apps.errors import InputError
from bilevel_apps.paper.effect_of_t.data import EACH, Characters, draw_sets, open_characters
from bilevel_apps.paper.effect_of_t.problem import EXACT, STEPS, LinearMap, step_size
from bilevel_apps.paper.effect_of_t.tune import MOMENTUM, RATE, Length, tune
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.harness.summary import Summary, summary
from bilevel_apps.runs.folder import RunFolder

__all__ = ["DATA", "DIFFERS", "NAMES", "SEEDS", "Study", "study"]

DIFFERS = prose(__file__).differs

NAMES = (*STEPS, EXACT)
DATA = ("omniglot",)
SEEDS = {Scale.QUICK: 2, Scale.FULL: 3}
WEIGHTS = Path("pretrained:omniglot-5way-1shot")

RHO = 0.3
SHARE = 0.5
CLASSES = {False: 40, True: 100}
LENGTHS = {
    False: Length(outer_steps=100, every=5, slow=2),
    True: Length(outer_steps=1500, every=10, slow=3),
}


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """What was computed.

    Attributes:
        results: by T or `exact`, what `tune` returned for each data set.
        settings: everything that decides them.
        length: hyper-iterations.
        seconds: that it took.
    """

    results: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: Mapping[str, Any]
    length: Length
    seconds: float

    @property
    def seeds(self) -> int:
        """The number of data sets."""
        return len(self.results[EXACT])

    @property
    def looks(self) -> list[int]:
        """The hyper-iterations after which it was looked."""
        return [look["step"] for look in self.results[EXACT][0]["looks"]]

    def paths(self, name: str, figure: str) -> list[list[float]]:
        """Return a figure of every data set, at every look."""
        return [[look[figure] for look in found["looks"]] for found in self.results[name]]

    def curve(self, name: str, figure: str) -> list[Summary]:
        """Return it over data sets, at every look."""
        return [summary(values) for values in zip(*self.paths(name, figure), strict=True)]

    def last(self, name: str, figure: str) -> Summary:
        """Return it over data sets, at the last look."""
        return self.curve(name, figure)[-1]

    def work(self, name: str) -> Mapping[str, float]:
        """Return the work of a hypergradient, which was counted on the first data set."""
        counted: Mapping[str, float] = self.results[name][0]["work"]
        return counted

    def cost(self) -> dict[str, Any]:
        """Return what all of it took, whichever item computed it."""
        each = self.length.outer_steps + 1
        taken = sum(self.work(T)["steps"] for T in STEPS)
        return {
            "hypergradients": f"{each * self.seeds:,} a row in closed form, {each:,} a data set",
            "step by step": f"{self.length.slow + 1} hypergradients a row, of the first data set: "
            f"{taken * (self.length.slow + 1):,.0f} inner gradients",
            "shared": "Table 2 and Figures 3 and 4 show the same runs, which are computed once",
            "seconds": self.seconds,
        }


def study(work: Work) -> Study:
    """Compute, or read, the optimisation of H for every T and data set.

    Raises:
        InputError: the network or the store cannot be used, or another item is being computed in
            the same folder.
        RunError: a record cannot be written.
    """
    length = LENGTHS[work.full]
    characters = open_characters(work.runs.get("", WEIGHTS), work.data)
    classes = min(CLASSES[work.full], characters.split.num_classes)
    if work.full and classes < CLASSES[work.full]:
        raise InputError(
            f"{work.data}: `scale`=full draws {CLASSES[work.full]} classes of the test split, "
            f"which has {classes}: give a larger store, or `scale`=quick"
        )

    @cache
    def problem(seed: int) -> LinearMap:
        sets = draw_sets(characters, seed, classes)
        return LinearMap(sets=sets, rho=RHO, eta=step_size(sets, RHO, SHARE))

    def of(seed: int, name: str) -> Callable[[], Mapping[str, Any]]:
        return lambda: tune(problem(seed), name, length, compare=seed == 0)

    todo = {f"seed-{seed}-T-{name}": of(seed, name) for seed in range(work.seeds) for name in NAMES}
    settings = _settings(characters, classes, length)
    parts = _shared(work, todo, settings)
    rows = {name: parts[place :: len(NAMES)] for place, name in enumerate(NAMES)}
    return Study(
        results={name: [part.result for part in row] for name, row in rows.items()},
        settings=settings | {"seeds": work.seeds},
        length=length,
        seconds=sum(part.seconds for part in parts),
    )


def _shared(
    work: Work, todo: Mapping[str, Callable[[], Mapping[str, Any]]], settings: Mapping[str, Any]
) -> list[Part]:
    """Compute in a folder beside those of the items, so that each finds what another has done."""
    out, scale = work.folder.parent.parent, work.folder.name
    folder = RunFolder(out / "effect-of-t" / scale)
    with folder.exclusive():
        return replace(work, name="effect of T", folder=folder.path).parts(todo, settings)


def _settings(characters: Characters, classes: int, length: Length) -> dict[str, Any]:
    run, split = characters.run, characters.split
    episode = run.config.episode
    return {
        "classes": f"{classes} of the {split.num_classes} test classes of {characters.data}, "
        "upright, drawn anew for each seed",
        "pixels": split.sha256,
        "examples": f"{EACH} a class to train on, {EACH} for validation, {characters.test_size()} "
        "for the test",
        "features": f"{run.learner.backbone.dim} of a {episode.way}-way {episode.shot}-shot "
        f"network that {_seen(characters)}, less their mean over the training examples",
        "network": run.sha256,
        "targets": "1 for the class and 0 for others, less 1/classes",
        "inner": f"L_H(w) = ‖Y - XHw‖² + ρ‖w‖², ρ = {RHO}; T steps of gradient descent from "
        f"w = 0, η = {SHARE} / 2(‖X‖² + ρ)",
        "outer": f"‖Y - XHw‖² on the validation examples; gradient descent on H with step {RATE} "
        f"and momentum {MOMENTUM}, from H = I",
        "hyper-iterations": length.outer_steps,
        "looked every": length.every,
        "taken step by step": f"the first {length.slow} of the first data set, and one at the end",
    }


def _seen(characters: Characters) -> str:
    if characters.run.data.get(characters.split.name) == characters.split.sha256:
        return "has not seen these classes"
    return "was trained on another store and may have seen these classes"
