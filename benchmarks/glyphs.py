"""Every method on the built-in glyphs, each trained for the same time, and what that brings.

Beside each: the same network before training with the method's own head, and the nearest neighbour
in pixels. Classes of the test are of scripts that training has not seen. Accuracies are means over
600 episodes of 5 classes, 1 shot and 15 queries a class, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from measuring import add_line, read_lines
from torch import Tensor

from bilevel_data import EpisodeSampler, EpisodeSpec, open_store
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Episodes, to_device
from bilevel_meta.learner import Learner
from bilevel_meta.registry import LEARNERS
from bilevel_models import Normalization, create_model

WAY, SHOT, QUERY = 5, 1, 15
EPISODES = 600
FIVE = {"way": WAY}
INDUCTIVE = {"norm": "support"}
WIDE = Diet(way=20, shot=1, query=5, episodes=4)
NARROW = Diet(way=5, shot=1, query=15, episodes=4)
SETS = Diet(way=20, shot=1, query=4, episodes=2)
FEWER = Diet(way=5, shot=1, query=5, episodes=4)


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a method is trained here.

    Attributes:
        method: its name.
        settings: of the learner.
        diet: of a hyper-iteration.
        rate: of Adam at its highest.
        filters: of each convolution.
    """

    method: str
    settings: dict[str, Any]
    diet: Diet = NARROW
    rate: float = 2e-3
    filters: int = 64


def inner(method: str, **settings: Any) -> Recipe:
    """Return the recipe of a method that moves the whole network, less wide to be quicker."""
    filters = settings.pop("filters", 32)
    settings = {**FIVE, **INDUCTIVE, **settings}
    return Recipe(method=method, settings=settings, diet=FEWER, filters=filters, rate=3e-3)


RECIPES = {
    "anil": Recipe(method="anil", settings=FIVE),
    "baseline": Recipe(method="baseline", settings={"step_size": 0.05}, diet=WIDE),
    "baseline++": Recipe(method="baseline++", settings={"scale": 10.0}, diet=WIDE),
    "boil": inner("boil", steps=3, step_size=0.4),
    "cavia": Recipe(method="cavia", settings={**FIVE, "step_size": 100.0}),
    "fomaml": inner("fomaml", steps=5, step_size=0.1),
    "imaml": inner("imaml", steps=5, step_size=0.2, proximal=1.0, solver_steps=3),
    "learned-optimizer": inner("learned-optimizer", steps=3, hidden=8, filters=16),
    "maml": inner("maml", steps=3, step_size=0.4),
    "maml (transductive)": replace(
        inner("maml", steps=3, step_size=0.4), settings={**FIVE, "steps": 3, "step_size": 0.4}
    ),
    "maml++": inner("maml++", steps=3, step_size=0.4, anneal=200),
    "matching": Recipe(method="matching", settings={}, diet=WIDE),
    "matching, full context": Recipe(method="matching", settings={"reads": 2}, diet=NARROW),
    "memory": Recipe(method="memory", settings={}, diet=WIDE),
    "meta-lstm": inner("meta-lstm", steps=3, hidden=8, step_size=0.1, filters=16),
    "meta-networks": Recipe(method="meta-networks", settings={**FIVE, "embedding": 32}),
    "meta-sgd": inner("meta-sgd", steps=1, step_size=0.4),
    "neural-statistician": Recipe(
        method="neural-statistician", settings={"image_shape": (28, 28, 1)}, diet=SETS
    ),
    "prototypical": Recipe(method="prototypical", settings={}, diet=WIDE),
    "relation": Recipe(method="relation", settings={"channels": 64}),
    "reptile": replace(
        inner("reptile", steps=8, test_steps=20, step_size=5e-3),
        diet=Diet(way=5, shot=9, query=1, episodes=3),
    ),
    "ridge": Recipe(method="ridge", settings={}, diet=WIDE),
    "siamese": Recipe(method="siamese", settings={}, diet=WIDE),
    "simpleshot": Recipe(method="simpleshot", settings={}, diet=WIDE),
    "snail": Recipe(method="snail", settings=FIVE, diet=FEWER),
    "svm": Recipe(method="svm", settings={"bound": 1.0}, diet=replace(NARROW, shot=1)),
}
PRETRAINED = ("baseline", "baseline++", "simpleshot")


def episodes(split: Any, diet: Diet, seed: int) -> Iterator[Episodes]:
    """Yield meta-batches for ever."""
    spec = EpisodeSpec(way=diet.way, shot=diet.shot_range[0], query=diet.query)
    sampler, first = EpisodeSampler(split, spec, seed=seed), 0
    while True:
        yield to_device(sampler.batch(first, diet.episodes), diet.way, torch.device("cpu"))
        first += diet.episodes


def make(recipe: Recipe, classes: int) -> Learner:
    """Return a new learner of a recipe."""
    torch.manual_seed(0)
    more = {"classes": classes} if recipe.method in PRETRAINED else {}
    network = create_model("omniglot-net", channels=1, image_size=28, filters=recipe.filters)
    return LEARNERS[recipe.method](network, **recipe.settings, **more)


def train(learner: Learner, recipe: Recipe, split: Any, seconds: float) -> int:
    """Train for so many seconds of processor time; return the outer steps."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=recipe.rate)
    begin, steps = time.process_time(), 0
    learner.train()
    for batch in episodes(split, recipe.diet, seed=0):
        passed = (time.process_time() - begin) / seconds
        if passed >= 1:
            break
        warm = min(1.0, 20 * passed + 0.05)
        fall = 0.5 * (1 + math.cos(math.pi * passed))
        optimizer.param_groups[0]["lr"] = recipe.rate * warm * fall
        for loss in learner.losses(batch):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            steps += 1
    return steps


def score(learner: Learner, split: Any, count: int) -> tuple[float, float]:
    """Return the mean accuracy on test episodes and the half-width of its interval, in %."""
    learner.eval()
    diet = Diet(way=WAY, shot=SHOT, query=QUERY, episodes=20)
    found: list[Tensor] = []
    for batch in episodes(split, diet, seed=1):
        with torch.no_grad():
            scores = learner.scores(batch)
        found.append((scores.argmax(dim=-1) == batch.query_labels).double().mean(dim=1))
        if len(found) * diet.episodes >= count:
            break
    return interval(torch.cat(found))


def pixels(split: Any, count: int) -> tuple[float, float]:
    """Return the accuracy of the nearest neighbour in pixels."""
    found = []
    for batch in episodes(split, Diet(way=WAY, shot=SHOT, query=QUERY, episodes=20), seed=1):
        near = torch.cdist(batch.query.flatten(2), batch.support.flatten(2)).argmin(dim=-1)
        labels = batch.support_labels.gather(1, near)
        found.append((labels == batch.query_labels).double().mean(dim=1))
        if 20 * len(found) >= count:
            break
    return interval(torch.cat(found))


def interval(each: Tensor) -> tuple[float, float]:
    """Return mean and 95 % half-width, in %."""
    return 100 * float(each.mean()), 196 * float(each.std()) / len(each) ** 0.5


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's figures, accuracies in %."""

    name: str
    normalization: str
    inductive: bool
    filters: int
    steps: int
    seconds: float
    accuracy: tuple[float, float]
    untrained: tuple[float, float]
    raw_pixels: tuple[float, float]

    @property
    def ahead(self) -> bool:
        """Whether it beats both others by more than both intervals."""
        value, width = self.accuracy
        others = (self.untrained, self.raw_pixels)
        return all(value - width > other + wide for other, wide in others)


def measure(name: str, store: Any, options: argparse.Namespace) -> Row:
    """Train a method and return its row."""
    recipe = RECIPES[name]
    training, test = store.load("train"), store.load("test")
    learner = make(recipe, training.num_classes)
    untrained = score(copy.deepcopy(learner), test, options.episodes)
    begin = time.process_time()
    steps = train(learner, recipe, training, options.seconds)
    norm: Normalization = learner.normalization  # type: ignore[assignment]
    return Row(
        name=name,
        normalization=norm.value,
        inductive=norm.inductive,
        filters=recipe.filters,
        steps=steps,
        seconds=round(time.process_time() - begin, 1),
        accuracy=score(learner, test, options.episodes),
        untrained=untrained,
        raw_pixels=pixels(test, options.episodes),
    )


def print_row(row: Row) -> None:
    """Print a line of the table."""
    figures = (f"{a:.2f} ± {b:.2f}" for a, b in (row.accuracy, row.untrained, row.raw_pixels))
    print(
        f"| {row.name} | {row.normalization} | {row.steps} | {' | '.join(figures)} "
        f"| {'yes' if row.ahead else 'NO'} |",
        flush=True,
    )


HEAD = """# Every method on glyphs

<!-- Made of docs/records/methods-glyphs.jsonl by benchmarks/glyphs.py --page; a test compares. -->

Each method with the Omniglot net and a training of about a minute of one processor, by the recipe
in `benchmarks/glyphs.py`: 5-way 1-shot on scripts that training has not seen, {episodes} episodes,
accuracy in %. *Ahead*: above both the nearest neighbour in raw pixels, {pixels}, and the same
network before training with the method's own head, by more than both intervals. Recipes were tried
on the classes of validation. Times and widths differ, so this is no ranking: it shows that each
learns.

| method | normalisation | filters | seconds | outer steps | trained | untrained | ahead |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
`episode` normalisation classifies each query image with the help of the others (transductive), the
others as if it were alone.

```sh
bilevel-data prepare glyphs --out glyphs.h5
python benchmarks/glyphs.py --store glyphs.h5 --json docs/records/methods-glyphs.jsonl
```
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page of the documentation, the most accurate first."""

    def figure(pair: Sequence[float]) -> str:
        return f"{pair[0]:.2f} ± {pair[1]:.2f}"

    lines = [
        f"| {row['name']} | {row['normalization']} | {row['filters']} | {row['seconds']:.0f} "
        f"| {row['steps']} | {figure(row['accuracy'])} | {figure(row['untrained'])} "
        f"| {'yes' if row['ahead'] else 'no'} |"
        for row in sorted(rows, key=lambda row: -row["accuracy"][0])
    ]
    head = HEAD.format(episodes=EPISODES, pixels=figure(rows[0]["raw_pixels"]))
    return "\n".join((head + "\n".join(lines), *_remarks(rows), TAIL))


def _remarks(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what a reader should know of the rows that are there, and of those that are not."""
    recorded = {row["name"]: row["filters"] for row in rows}
    earlier = [name for name, width in recorded.items() if width != RECIPES[name].filters]
    if earlier:
        yield f"\nWith an earlier recipe, wider and with more query images: {', '.join(earlier)}."
    if missing := [name for name in RECIPES if name not in recorded]:
        yield f"\nNot recorded yet: {', '.join(missing)}."


def main() -> None:
    """Measure the methods that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="glyphs, as bilevel-data makes it")
    parser.add_argument("--page", type=Path, help="make this page of the rows in --json, no more")
    parser.add_argument("--only", nargs="*", choices=RECIPES, help="these methods")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, processor time")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of the test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--json", type=Path, help="where the rows are added, one a line; what it has is not redone"
    )
    options = parser.parse_args()
    if options.page:
        options.page.write_text(page(read_lines(options.json)), encoding="utf-8")
        return
    torch.set_num_threads(options.threads)
    store = open_store(options.store)
    print("| method | normalization | outer steps | trained | untrained | raw pixels | ahead |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    done = {row["name"] for row in read_lines(options.json)}
    for name in options.only or RECIPES:
        if name in done:
            continue
        row = measure(name, store, options)
        print_row(row)
        add_line(options.json, {**asdict(row), "ahead": row.ahead})


if __name__ == "__main__":
    main()
