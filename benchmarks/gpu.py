"""Everything that a GPU is asked, within ten minutes: gradients, times, and two trainings.

1. `gradients.py`: those on the GPU beside the processor's and finite differences;
2. `hyperiteration.py` and `evaluation.py`, in float32 and bfloat16;
3. C4L and ResNet-12 on mini-ImageNet, each for half of the time that is left, and their scores.

Reports and records come into a folder; those of trainings can be moved to docs/records as they are.
Without a store of mini-ImageNet there is nothing to train on, and the third part is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

BENCHMARKS = Path(__file__).parent
BUDGET = 570.0  # seconds, of ten minutes
OVERHEAD = 40.0  # of a training beside its own time: loading, the last validation, the score
PRECISIONS = ("float32", "bfloat16")
TRAININGS = {
    "c4l": ("mini-imagenet-c4l-5way-1shot",),
    "resnet12": ("mini-imagenet-rn-5way-1shot", "model.name=resnet12"),
}


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """A command: what it makes, its words after `python`, and the seconds that it may take."""

    name: str
    words: tuple[str, ...]
    seconds: float


def measurements(out: Path, data: Sequence[Path]) -> list[Step]:
    """Return the commands that measure, with reports in a folder."""
    stores = ("--data", *map(str, data)) if data else ()
    steps = [_benchmark("gradients", out / "gradients.json", 90)]
    for precision in PRECISIONS:
        chosen = ("--precision", precision)
        report = out / f"hyperiteration-{precision}.json"
        sides = ("--sides", "bare", "ours", "loop", "--repeats", "5")
        steps.append(_benchmark("hyperiteration", report, 90, *chosen, *sides))
        report = out / f"evaluation-{precision}.json"
        steps.append(_benchmark("evaluation", report, 45, *chosen, "--repeats", "3", *stores))
    return steps


def training(name: str, out: Path, store: Path, seconds: float) -> list[Step]:
    """Return the commands that train a network for so long, and write the record of its score."""
    preset, *settings = TRAININGS[name]
    minutes = max(seconds - OVERHEAD, 10.0) / 60
    # By time and not by number: a schedule that ends at a number would be cut off at its peak.
    settings += [f"train.minutes={minutes:.3f}", "train.steps=1000000", "train.schedule=constant"]
    settings += ["train.lr=1e-3", "train.validate_every=1000", "tracking.enabled=false"]
    run, chosen = str(out / name), [w for each in settings for w in ("--set", each)]
    train = ("-m", "bilevel_apps.cli.train", "--preset", preset, "--data", str(store))
    score = ("-m", "tools.results", "add", run, "--data", str(store), "--split", "val")
    return [
        Step(
            name=f"{name}, {minutes:.1f} min",
            words=(*train, "--out", run, "--device", "cuda", *chosen),
            seconds=seconds,  # more than the training gives itself
        ),
        Step(
            name=f"{name}, score",
            words=(*score, "--device", "cuda", "--out", str(out / f"gpu-{name}.json")),
            seconds=OVERHEAD,
        ),
    ]


def _benchmark(name: str, report: Path, seconds: float, *options: str) -> Step:
    words = (str(BENCHMARKS / f"{name}.py"), "--device", "cuda", "--json", str(report), *options)
    return Step(name=report.stem, words=words, seconds=seconds)


def run(step: Step) -> bool:
    """Run a command and say how it ended; whether it ended well and in time."""
    print(f"\n== {step.name}", flush=True)
    start = time.perf_counter()
    try:
        status: object = subprocess.run(
            [sys.executable, *step.words], timeout=step.seconds, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        status = f"stopped after {step.seconds:.0f} s"
    print(f"== {step.name}: {status or 'done'}, {time.perf_counter() - start:.0f} s", flush=True)
    return status == 0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="stores to measure on")
    parser.add_argument("--mini-imagenet", type=Path, help="the store to train on")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="a new folder for all")
    return parser.parse_args(words)


def main() -> None:
    """Measure, train for the time that is left, say what failed."""
    options = parse()
    if not torch.cuda.is_available():
        print("error: no CUDA device is available to torch: run this where there is one, with a "
              "CUDA build of torch", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)
    if options.out.exists():
        print(f"error: --out {options.out}: is there already: name a new folder", file=sys.stderr)
        raise SystemExit(2)
    options.out.mkdir(parents=True)
    end = time.perf_counter() + BUDGET
    failed = [s.name for s in measurements(options.out, options.data) if not run(s)]
    names = list(TRAININGS) if options.mini_imagenet else []
    for done, name in enumerate(names):
        share = (end - time.perf_counter()) / (len(names) - done)
        steps = training(name, options.out, options.mini_imagenet, share)
        failed += [step.name for step in steps if not run(step)]
    if not options.mini_imagenet:
        print("\nnothing trained: give --mini-imagenet FILE.h5")
    print(f"\nreports and records: {options.out}")
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
