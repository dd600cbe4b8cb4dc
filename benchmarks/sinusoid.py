"""Mean squared error on new sinusoids after 1, 5 and 10 inner steps, method by method.

All but the step that is measured is as in `bilevel_meta.sinusoid`. Without adaptation every method
stays near 3, the error of predicting the mean. A mean is over the tasks whose error is at most 100;
how many are not is printed beside it, and none may be for a claim to hold.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from measuring import Verdict, print_verdicts

from bilevel_meta.adaptation import AdaptedNetwork
from bilevel_meta.sinusoid import METHODS, errors, train

STEPS = (1, 5, 10)
LOST = 100.0
LIMITS = {
    # method, shot, inner steps: the largest error, for 2000 outer iterations.
    ("maml", 10, 1): 1.0,
    ("maml", 10, 5): 0.65,
    ("maml", 10, 10): 0.55,
    ("maml", 5, 1): 1.4,
    ("fomaml", 10, 1): 1.25,
    ("meta-sgd", 10, 1): 0.45,
    ("anil", 10, 1): 1.4,
    ("reptile", 10, 1): 1.7,
}


@final
@dataclass(frozen=True)
class Cell:
    """The mean error over tasks, and how many were lost."""

    error: float
    lost: int

    def __str__(self) -> str:
        """Return it as it is printed."""
        return f"{self.error:.3g}" + (f" ({self.lost} lost)" if self.lost else "")

    def within(self, limit: float) -> bool:
        """Say whether a claim holds."""
        return not self.lost and self.error <= limit


def measured(made: AdaptedNetwork, shot: int, steps: int) -> Cell:
    """Return a cell of the table."""
    found = errors(made, shot=shot, steps=steps)
    kept = found[found <= LOST]
    return Cell(error=float(kept.mean()), lost=len(found) - len(kept))


def main() -> None:
    """Train and measure the methods that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="20 iterations: a smoke test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    iterations = 20 if options.quick else options.iterations
    rows, found = [], {}
    print("| method | iterations | seconds | K = 10: 1 / 5 / 10 steps | K = 5: 1 / 5 / 10 steps |")
    print("| --- | --- | --- | --- | --- |")
    for method in options.only:
        begin = time.process_time()
        made = train(method, iterations)
        seconds = time.process_time() - begin
        table = {shot: [measured(made, shot, steps) for steps in STEPS] for shot in (10, 5)}
        found |= {(method, s, t): table[s][i] for s in table for i, t in enumerate(STEPS)}
        cells = (" / ".join(map(str, table[shot])) for shot in (10, 5))
        print(f"| {method} | {iterations} | {seconds:.1f} | {' | '.join(cells)} |", flush=True)
        figures = {f"K = {shot}": [vars(cell) for cell in table[shot]] for shot in table}
        rows.append({"method": method, "iterations": iterations, "seconds": seconds, **figures})
    verdicts = [
        Verdict(
            claim=f"{method}, K = {shot}: at most {limit:g} after {steps} steps",
            met=found[method, shot, steps].within(limit) if iterations == 2000 else None,
            figure=f"{found[method, shot, steps]} after {iterations} iterations",
        )
        for (method, shot, steps), limit in LIMITS.items()
        if method in options.only
    ]
    print_verdicts(verdicts)
    if options.json:
        report = {"rows": rows, "verdicts": [vars(verdict) for verdict in verdicts]}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
