"""Which settings come next, given what the ones before came to."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from bilevel_apps.errors import InputError
from bilevel_apps.sweep.axes import Axis, Choices, Settings, grid

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["SAMPLERS", "Proposals", "proposals"]

SAMPLERS = ("grid", "random", "tpe")

# Yields settings; is sent the validation accuracy that they came to, or None where they failed.
Proposals = Generator[Settings, float | None, None]


def proposals(axes: Sequence[Axis], sampler: str, trials: int | None, seed: int) -> Proposals:
    """Return the settings of a sweep, one after the other.

    The same arguments and the same accuracies give the same settings, so that a sweep continues by
    being told again what it knows.

    Args:
        axes: what varies.
        sampler: grid; random; or tpe, optuna's tree-structured Parzen estimator.
        trials: how many settings to propose; the grid has a number of its own.
        seed: of random and tpe.

    Raises:
        InputError: numbers that do not fit the sampler, or optuna is not installed.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"`sampler`={sampler}: expected one of {', '.join(SAMPLERS)}")
    if sampler == "grid":
        if trials is not None:
            raise InputError("`trials`: a grid is run whole: add `sampler`=random or tpe")
        return _grid(list(grid(axes)))
    if trials is None:
        raise InputError(f"`sampler`={sampler}: say how many settings to try with `trials`=N")
    return _sampled(_Space(axes), sampler, trials, seed)


def _grid(every: Sequence[Settings]) -> Proposals:
    for settings in every:
        _unused = yield settings


def _sampled(space: _Space, sampler: str, trials: int, seed: int) -> Proposals:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    # In memory: what a study has to remember is in the children's records.
    study = optuna.create_study(sampler=kinds[sampler](seed=seed), direction="maximize")
    for _ in range(trials):
        trial = study.ask(space.distributions())
        accuracy = yield space.settings(trial.params)
        if accuracy is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, accuracy)


@final
@dataclass(frozen=True)
class _Space:
    """The axes as optuna knows them.

    Raises:
        InputError: optuna is not installed.
    """

    axes: Sequence[Axis]

    def __post_init__(self) -> None:
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise InputError(
                "`sampler`=random and tpe need optuna: install it with pip install -c "
                "constraints.txt optuna, or leave `sampler` out for a grid"
            ) from None

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return a distribution an axis; a choice is one of its number, as values may be lists."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        found: dict[str, BaseDistribution] = {}
        for axis in self.axes:
            domain = axis.domain
            if isinstance(domain, Choices):
                found[axis.key] = CategoricalDistribution(range(len(domain.values)))
            elif domain.whole:
                low, high = int(domain.low), int(domain.high)
                found[axis.key] = IntDistribution(low, high, log=domain.log)
            else:
                found[axis.key] = FloatDistribution(domain.low, domain.high, log=domain.log)
        return found

    def settings(self, params: dict[str, Any]) -> Settings:
        """Return what optuna proposes as settings of the configuration."""
        return {
            axis.key: axis.domain.values[params[axis.key]]
            if isinstance(axis.domain, Choices)
            else params[axis.key]
            for axis in self.axes
        }
