"""A meta-batch of MAML, ANIL and prototypical networks: time and gradients beside others' ways.

All sides take turns in one process. The gradient of each is compared in float64 with that of the
loop by hand, which is what learn2learn's `clone` and `adapt` do: one episode after the other, each
step kept as a graph. `higher` and `torchopt` do the same by their own means; `vmap` takes the
episodes at once. Everything moves in the inner loop, the normalisation's offsets too, because
that is what the others offer.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from measuring import Verdict, finish, make_parser, ratio, take_turns
from memory import in_fresh_process, peak_above
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bilevel_core import Checkpointed, Engine, Unrolled
from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.anil import Anil
from bilevel_meta.methods.maml import Maml
from bilevel_meta.methods.prototypical import Prototypical
from bilevel_models import EACH_SET, Normalization, create_model

WAY, QUERY, ETA, EPISODES = 5, 15, 0.1, 4
AGREE = 1e-5
PEERS = ("loop by hand", "vmap by hand", "higher", "torchopt")
SHAPES = {"omniglot-net": (1, 28), "c4l": (3, 84)}
LONG = 32
"""T where memory is measured."""


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, T and the shot."""

    model: str
    steps: int
    shot: int

    def __str__(self) -> str:
        """Return it as it is printed."""
        return f"{self.model}, T = {self.steps}, {self.shot}-shot"

    def episodes(self, dtype: torch.dtype = torch.float32) -> Episodes:
        """Return a meta-batch of random pictures."""
        channels, size = SHAPES[self.model]
        generator = torch.Generator().manual_seed(0)

        def images(n: int) -> Tensor:
            shape = (EPISODES, WAY * n, channels, size, size)
            return torch.rand(shape, generator=generator).to(dtype)

        label = torch.arange(WAY)
        return Episodes(
            support=images(self.shot),
            query=images(QUERY),
            support_labels=label.repeat_interleave(self.shot).expand(EPISODES, -1),
            query_labels=label.repeat_interleave(QUERY).expand(EPISODES, -1),
            way=WAY,
        )

    def learner(self, engine: Engine | None = None) -> Maml:
        """Return MAML, all of whose weights move."""
        torch.manual_seed(0)
        channels, size = SHAPES[self.model]
        network = create_model(self.model, channels=channels, image_size=size)
        settings = {"way": WAY, "steps": self.steps, "step_size": ETA, "offsets_move": True}
        return Maml(network, engine=engine or Unrolled(), **settings)


Network = Callable[..., Tensor]


def ours(learner: Maml, batch: Episodes, steps: int) -> Tensor:
    """Return the loss of a meta-batch, back-propagated."""
    del steps
    return learner.loss(batch)


def by_hand(learner: Maml, batch: Episodes, steps: int) -> Tensor:
    """One episode after the other, by `torch.autograd.grad` with its graph kept."""
    network = learner.adapted.network
    total = batch.query.new_zeros(())
    for i in range(len(batch.support)):
        w = dict(network.named_parameters())
        for _ in range(steps):
            scores = functional_call(network, w, (batch.support[i], EACH_SET))
            loss = functional.cross_entropy(scores, batch.support_labels[i])
            slopes = torch.autograd.grad(loss, list(w.values()), create_graph=True)
            w = {name: leaf - ETA * g for (name, leaf), g in zip(w.items(), slopes, strict=True)}
        scores = functional_call(network, w, (batch.query[i], EACH_SET))
        total = total + functional.cross_entropy(scores, batch.query_labels[i])
    return total / len(batch.support)


def by_vmap(learner: Maml, batch: Episodes, steps: int) -> Tensor:
    """All episodes at once."""
    network = learner.adapted.network
    start = dict(network.named_parameters())

    def loss(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(network, w, (x, EACH_SET)), y)

    def episode(x: Tensor, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        w = start
        for _ in range(steps):
            slopes = torch.func.grad(loss)(w, x, y)
            w = {name: leaf - ETA * slopes[name] for name, leaf in w.items()}
        return loss(w, q, z)

    data = (batch.support, batch.support_labels, batch.query, batch.query_labels)
    return torch.vmap(episode)(*data).mean()


def by_higher(learner: Maml, batch: Episodes, steps: int) -> Tensor:
    """By higher's differentiable optimiser."""
    import higher

    network = learner.adapted.network
    optimizer = torch.optim.SGD(network.parameters(), lr=ETA)
    total = batch.query.new_zeros(())
    for i in range(len(batch.support)):
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (net, inner):
            for _ in range(steps):
                scores = net(batch.support[i], EACH_SET)
                inner.step(functional.cross_entropy(scores, batch.support_labels[i]))
            scores = net(batch.query[i], EACH_SET)
            total = total + functional.cross_entropy(scores, batch.query_labels[i])
    return total / len(batch.support)


def by_torchopt(learner: Maml, batch: Episodes, steps: int) -> Tensor:
    """By torchopt's differentiable optimiser."""
    import torchopt

    network = learner.adapted.network
    inner = torchopt.MetaSGD(network, lr=ETA)
    begin = torchopt.extract_state_dict(network), torchopt.extract_state_dict(inner)
    total = batch.query.new_zeros(())
    for i in range(len(batch.support)):
        for _ in range(steps):
            scores = network(batch.support[i], EACH_SET)
            inner.step(functional.cross_entropy(scores, batch.support_labels[i]))
        scores = network(batch.query[i], EACH_SET)
        total = total + functional.cross_entropy(scores, batch.query_labels[i])
        torchopt.recover_state_dict(network, begin[0])
        torchopt.recover_state_dict(inner, begin[1])
    return total / len(batch.support)


SIDES = {
    "ours": ours,
    "loop by hand": by_hand,
    "vmap by hand": by_vmap,
    "higher": by_higher,
    "torchopt": by_torchopt,
}


def installed() -> list[str]:
    """Return the sides that can be run here."""
    missing = {name for name in ("higher", "torchopt") if not importlib.util.find_spec(name)}
    return [name for name in SIDES if name not in missing]


def gradient(
    case: Case, side: str, dtype: torch.dtype, engine: Engine | None = None
) -> Callable[[], Tensor]:
    """Return what computes the gradient of a side, flat."""
    learner, batch = case.learner(engine).to(dtype).train(), case.episodes(dtype)
    parameters = list(learner.parameters())

    def run() -> Tensor:
        learner.zero_grad()
        SIDES[side](learner, batch, case.steps).backward()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    return run


def peak(side: str, threads: int) -> int | None:
    """Return the bytes that a gradient through many steps takes at its peak; ours checkpointed."""
    torch.set_num_threads(threads)
    engine = Checkpointed() if side == "ours" else None
    short, long = (Case(model="omniglot-net", steps=steps, shot=1) for steps in (1, LONG))
    gradient(short, side, torch.float32, engine)()  # what libraries load at their first call
    return peak_above(gradient(long, side, torch.float32, engine))


@final
@dataclass(frozen=True, kw_only=True)
class Peak:
    """The memory of a side, in bytes above what was held before; None where it is not told."""

    case: str
    side: str
    bytes: int | None


def measure_memory(threads: int) -> tuple[list[Peak], list[Verdict]]:
    """Return the peak of each side, each in a process of its own."""
    print(f"\n| omniglot-net, T = {LONG}, 1-shot | peak, MB |\n| --- | --- |")
    rows = []
    for side in installed():
        found = in_fresh_process(peak, side, threads)
        rows.append(Peak(case=f"omniglot-net, T = {LONG}, 1-shot", side=side, bytes=found))
        print(f"| {side} | {'not told' if found is None else round(found / 1e6)} |", flush=True)
    known = {row.side: row.bytes for row in rows if row.bytes}
    peers = {side: size for side, size in known.items() if side != "ours"}
    if "ours" not in known or not peers:
        return rows, []
    side = min(peers, key=lambda name: peers[name])
    share = known["ours"] / peers[side]
    return rows, [
        Verdict(
            claim=f"T = {LONG}: with Checkpointed at most a quarter of any peer's memory",
            met=share <= 0.25,
            figure=f"{share:.2f} of that of {side}",
        )
    ]


def once_learners(case: Case, *, bfloat16: bool) -> dict[str, Callable[[], Any]]:
    """Return ANIL and prototypical networks, encoding once, and as a loop over episodes."""
    channels, size = SHAPES[case.model]
    batch = case.episodes()

    def make(kind: type, **settings: Any) -> nn.Module:
        torch.manual_seed(0)
        network = create_model(case.model, channels=channels, image_size=size)
        norm = Normalization.EPISODE
        return kind(network, norm=norm, bfloat16=bfloat16, **settings).train()

    def all_at_once(learner: Any) -> None:
        learner.zero_grad()
        learner.loss(batch).backward()

    def one_by_one(learner: Any) -> None:
        """The plain network, support and query apart, a graph over the steps of the head."""
        learner.zero_grad()
        for i in range(EPISODES):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                h = learner.backbone(batch.support[i], EACH_SET)
                q = learner.backbone(batch.query[i], EACH_SET)
            head(learner, h.float(), q.float(), i).backward()

    def head(learner: Any, h: Tensor, q: Tensor, i: int) -> Tensor:
        y = batch.support_labels[i]
        if isinstance(learner, Prototypical):
            means = torch.stack([h[y == k].mean(dim=0) for k in range(WAY)])
            scores = -torch.cdist(q, means).square()
            return functional.cross_entropy(scores, batch.query_labels[i]) / EPISODES
        w, b = learner.weight, learner.bias
        for _ in range(case.steps):
            loss = functional.cross_entropy(h @ w + b, y)
            slopes = torch.autograd.grad(loss, [w, b], create_graph=True)
            w, b = w - ETA * slopes[0], b - ETA * slopes[1]
        return functional.cross_entropy(q @ w + b, batch.query_labels[i]) / EPISODES

    anil = make(Anil, way=WAY, steps=case.steps, step_size=ETA)
    prototypes = make(Prototypical)
    precision = "bfloat16" if bfloat16 else "float32"
    return {
        f"{name}, {side}, {precision}": partial(way, learner)
        for name, learner in (("ANIL", anil), ("prototypical", prototypes))
        for side, way in (("ours", all_at_once), ("loop", one_by_one))
    }


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A side of a case.

    Attributes:
        ms: median time of a meta-batch, forward and backward, in float32 where the side says
            nothing else.
        difference: ‖∇ - ∇'‖ / ‖∇'‖ in float64, ∇' that of the loop by hand; None: another method.
    """

    case: str
    side: str
    ms: float
    difference: float | None = None


def measure(case: Case, repeats: int) -> tuple[list[Row], list[Verdict]]:
    """Return the rows and the verdicts of a case."""
    names = installed()
    exact = {name: gradient(case, name, torch.float64)() for name in names}
    reference = exact["loop by hand"]
    apart = {n: float((g - reference).norm() / reference.norm()) for n, g in exact.items()}
    sides: dict[str, Callable[[], Any]] = {
        f"MAML, {name}": gradient(case, name, torch.float32) for name in names
    }
    for bfloat16 in (False, True):
        sides |= once_learners(case, bfloat16=bfloat16)
    times = take_turns(sides, repeats, torch.device("cpu"))
    rows = [
        Row(
            case=str(case),
            side=side,
            ms=statistics.median(found),
            difference=apart.get(side.removeprefix("MAML, ")),
        )
        for side, found in times.items()
    ]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.0e}"
        print(f"| {row.case} | {row.side} | {row.ms:.1f} | {difference} |", flush=True)
    return rows, _verdicts(case, times, apart)


def _verdicts(case: Case, times: dict[str, list[float]], apart: dict[str, float]) -> list[Verdict]:
    peers = [f"MAML, {name}" for name in apart if name in PEERS]
    fastest = min(peers, key=lambda side: statistics.median(times[side]))
    speed, worst = ratio(times, fastest, "MAML, ours"), max(apart.values())
    wanted = 1.3 if case.model == "omniglot-net" else 1.0
    gains = {
        f"{method}, {precision},": ratio(
            times, f"{method}, loop, {precision}", f"{method}, ours, {precision}"
        )
        for method in ("ANIL", "prototypical")
        for precision in ("float32", "bfloat16")
    }
    return [
        Verdict(
            claim=f"{case}: MAML's gradient agrees to {AGREE:g}",
            met=worst <= AGREE,
            figure=f"at most {worst:.0e} apart",
        ),
        Verdict(
            claim=f"{case}: MAML at least {wanted:g} times as fast as the fastest peer",
            met=speed >= wanted,
            figure=f"{speed:.2f} times {fastest.removeprefix('MAML, ')}",
        ),
        *(
            Verdict(
                claim=f"{case}: {method} at least 2 times as fast as the loop",
                met=gain >= 2,
                figure=f"{gain:.2f} times",
            )
            for method, gain in gains.items()
        ),
    ]


def main() -> None:
    """Measure the cases that are asked for."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--parts", nargs="*", choices=("time", "memory"), default=("time", "memory")
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        Case(model=model, steps=steps, shot=shot)
        for model in options.models
        for steps in (1, 5)
        for shot in (1, 5)
    ]
    if options.quick:
        cases = [Case(model="omniglot-net", steps=1, shot=1)]
    rows: list[Row | Peak] = []
    verdicts: list[Verdict] = []
    if "time" in options.parts:
        print("| case | side | ms a meta-batch | difference |\n| --- | --- | --- | --- |")
        for case in cases:
            found, more = measure(case, 1 if options.quick else options.repeats)
            rows += found
            verdicts += more
    if "memory" in options.parts and not options.quick:
        peaks, more = measure_memory(options.threads)
        rows += peaks
        verdicts += more
    finish(options, rows, verdicts)


if __name__ == "__main__":
    main()
