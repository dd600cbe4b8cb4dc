"""`bilevel-train`: meta-train a representation."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevel_apps.cli.common import Debug, make_app, run_app
from bilevel_apps.cli.torchrun_errors import single_error_line
from bilevel_apps.config import (
    Config,
    describe_keys,
    list_presets,
    load_config,
    load_preset,
    parse_config,
    with_settings,
)
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.system.processes import connected, launched


def _keys() -> str:
    return "\n".join(f"{key:26} {line}" for key, line in describe_keys().items())


HELP = f"""Meta-train a representation on few-shot episodes (Algorithm 1 of the paper).

Settings come from a YAML file or a preset, then from --set. Everything that decides the result is
saved as DIR/config.yaml; DIR/best.safetensors is the checkpoint that validated best,
DIR/last.safetensors the one that --resume continues from. The run is logged to MLflow, by default
in mlflow.db beside DIR.

Example:

  bilevel-data prepare glyphs --out glyphs.h5

  bilevel-train --preset glyphs-5way-1shot --data glyphs.h5 --out runs/glyphs

  bilevel-eval runs/glyphs

--data may be repeated: each meta-batch is then drawn from the train split of one of the stores, by
their weights (1 unless given: --data a.h5 --data b.h5=0.5). The first store is the run's own: it is
validated on, and evaluated on unless another is given.

--sweep trains once for each combination of values, below DIR, as children of one run in MLflow, and
prints a table of them. A failed child does not stop the others; --resume goes on where the sweep
stopped. --sampler random or tpe (with optuna) tries --trials N settings, also of ranges:

  bilevel-train --preset … --data … --out runs/T --sweep inner.steps=3,5,8 --sweep seed=0,1

  bilevel-train … --out runs/lr --sweep train.lr=1e-4..1e-2 --sampler tpe --trials 20

--set method=approx trains without the derivative of the inner steps; the others are the rows of the
paper's Table 4 (bilevel-train, approx-train, classic-train, multiclass).

Several processes, on one machine or more, share each meta-batch and give the same result:

  torchrun --nproc-per-node 2 -m bilevel_apps.cli.train --preset … --data … --out …

Presets (paper/… has the paper's own settings): {", ".join(list_presets())}.

Keys for --set, with their defaults:

\b
{_keys()}
"""

app = make_app(HELP)


@app.command(help=HELP)
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings as YAML.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from these settings instead.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.h5[=WEIGHT]",
            help="A store of bilevel-data; repeat it to train on several.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="KEY=V,V…", help="Train with each value; repeat it for a grid."
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="grid|random|tpe", help="How a sweep chooses settings.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many settings random and tpe try.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue DIR from its last checkpoint.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Collect the settings and train."""
    del debug
    if out is None:
        raise InputError("--out DIR is missing: name a folder for the run")
    given = _collect(config, preset, data or [], device, assignments or [])
    if given.data is not None:
        from bilevel_data import open_store

        for path in (given.data, *given.train.mix):
            open_store(path)  # a bad one is refused before torch is imported, which takes seconds
    named = config is not None or preset is not None
    processes = launched(os.environ)
    if sweep or sampler or trials or _holds_sweep(out):
        _sweep(given, out, sweep or [], sampler, trials, resume=resume, alone=processes.size == 1)
        return
    with connected(processes):
        chosen = processes.from_first(lambda: _chosen(given, out, resume=resume, named=named))
        from bilevel_apps.training.loop import train as run_training

        best = run_training(chosen, out, resume=resume, processes=processes)
    if best is not None:
        print(f"best validation accuracy {best}")
    print(f"evaluate with: bilevel-eval {out}")


def _collect(
    config: Path | None,
    preset: str | None,
    data: list[str],
    device: str | None,
    assignments: list[str],
) -> Config:
    if config is not None and preset is not None:
        raise InputError(f"{config} and --preset {preset}: give one of them; change it with --set")
    settings: dict[str, Any] = {}
    if preset is not None:
        settings = load_preset(preset)
    elif config is not None:
        settings = load_config(config)
    # Each source is checked by itself, so that a message names the one that is wrong.
    parse_config(settings, str(config) if config else f"preset {preset}")
    settings = with_settings(settings, assignments)
    parse_config(settings, "--set")
    if data:
        stores = _weighted(data)
        settings["data"], own = next(iter(stores.items()))
        mix = {path: weight / own for path, weight in stores.items() if path != settings["data"]}
        if mix:
            settings["train"] = {**settings.get("train", {}), "mix": mix}
    if device is not None:
        settings["device"] = device
    return parse_config(settings, "--device")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _weighted(data: list[str]) -> dict[str, float]:
    """Return the weight of each store that `--data FILE[=WEIGHT]` names, by its absolute path.

    Raises:
        InputError: a weight is not > 0, or a store is named twice.
    """
    from bilevel_apps.system.files import is_file

    found: dict[str, float] = {}
    for text in data:
        path, _, number = text.rpartition("=")
        weight = math.nan if is_file(Path(text)) else _number(number)
        if not path or math.isnan(weight):  # a name may have an = of its own
            path, weight = text, 1.0
        if not 0 < weight < math.inf:
            raise InputError(f"--data {text}: expected FILE.h5=WEIGHT with a weight above 0")
        place = str(Path(path).resolve())
        if place in found:
            raise InputError(f"--data {text}: given twice: give it once, with its weight")
        found[place] = weight
    return found


def _holds_sweep(out: Path) -> bool:
    from bilevel_apps.sweep.folder import SweepFolder

    return SweepFolder(out).began()


def _sweep(
    given: Config,
    out: Path,
    axes: list[str],
    sampler: str | None,
    trials: int | None,
    *,
    resume: bool,
    alone: bool,
) -> None:
    """Run a sweep and print its children."""
    from bilevel_apps.sweep import Plan, sweep
    from bilevel_apps.sweep.table import as_lines, best_first

    if not alone:
        raise InputError(
            "--sweep under torchrun: a sweep is one process: leave torchrun out, or train its "
            "children one by one"
        )
    if not axes and (sampler or trials):
        raise InputError("--sampler and --trials: give --sweep KEY=VALUE,… too")
    plan = Plan(axes=tuple(axes), sampler=sampler or "grid", trials=trials) if axes else None
    children = sweep(given, out, plan, resume=resume)
    print("\n".join(as_lines(children)))
    failed = [child for child in children if child.error is not None]
    if len(failed) < len(children):
        print(f"evaluate the best with: bilevel-eval {out / best_first(children)[0].name}")
    if failed:
        names = ", ".join(child.name for child in failed)
        raise RunError(
            f"{len(failed)} of {len(children)} children failed: {names}; the first: "
            f"{failed[0].error}"
        )


def _chosen(given: Config, out: Path, *, resume: bool, named: bool) -> Config:
    from bilevel_apps.runs.folder import RunFolder

    folder = RunFolder(out)
    if resume and folder.began():
        return folder.continued(given)
    if not named and not given.model_fields_set:
        what = f"{out} holds no run to resume" if resume else "nothing to train"
        raise InputError(f"{what}: give --preset NAME or a CONFIG.yaml")
    return given


def main() -> None:
    """Run the command, alone or as one of the processes that torchrun started."""
    processes = launched(os.environ)
    if processes.size == 1:
        run_app(app)
        return
    with single_error_line(processes, debug="--debug" in sys.argv) as report:
        run_app(app, report)


if __name__ == "__main__":
    main()
