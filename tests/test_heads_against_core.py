"""The heads' own adjoints against core's engines: E, the heads and every hypergradient."""

import itertools

import pytest
import torch

from bilevel_core import GradientDescent, HeavyBall, Implicit, Problem, Reverse, hypergradient
from bilevel_models import heads

BATCH, N, M, DIM, WAY = 2, 6, 4, 3, 3
OPTIONS = ("plain", "heavy ball", "decay", "initial weights", "a step size a step", "all")


def episodes(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    lam = {
        "support": normal(BATCH, N, DIM),
        "query": normal(BATCH, M, DIM),
        "scale": torch.tensor(1.3, dtype=torch.float64),
        "step": torch.tensor(0.2, dtype=torch.float64),
        "decay": torch.tensor(0.0, dtype=torch.float64),
        "momentum": torch.tensor(0.0, dtype=torch.float64),
    }
    labels = torch.randint(0, WAY, (BATCH, N + M), generator=generator)
    return lam, labels[:, :N], labels[:, N:], normal


def chosen(option, steps):
    """λ with an option's entries, and the labels."""
    lam, support_labels, query_labels, normal = episodes()
    everything = option == "all"
    if everything or option == "heavy ball":
        lam["momentum"] += 0.6
    if everything or option == "decay":
        lam["decay"] += 0.05
    if everything or option == "initial weights":
        lam |= {"weight": normal(BATCH, DIM, WAY), "bias": normal(BATCH, 1, WAY)}
    if steps > 0 and (everything or option == "a step size a step"):
        lam["step"] = 0.1 + 0.1 * torch.linspace(0, 1, steps, dtype=torch.float64)
    return lam, support_labels, query_labels


def by_core(lam, y, query_labels, loss, steps):
    def inner(w, lam):
        scores = heads.logits({**w, "scale": lam["scale"]}, lam["support"])
        if loss is heads.SQUARED:
            each = heads.squared_error(scores, y)
        else:
            each = -(y * scores.log_softmax(-1)).sum(-1).mean(1)
        return each.sum() + 0.5 * lam["decay"] * (
            w["weight"].square().sum() + w["bias"].square().sum()
        )

    def outer(w, lam):
        scores = heads.logits({**w, "scale": lam["scale"]}, lam["query"])
        return heads.cross_entropy(scores, query_labels).mean()

    def init(lam):
        if "weight" in lam:
            return {name: lam[name] for name in ("weight", "bias")}
        return heads.zeros(lam["support"], WAY)

    def step_size(lam, t):
        return lam["step"] if lam["step"].ndim == 0 else lam["step"][t - 1]

    dynamics = (
        HeavyBall(step_size=step_size, momentum=lambda lam, _t: lam["momentum"])
        if "momentum" in lam
        else GradientDescent(step_size=step_size)
    )
    problem = Problem(inner=inner, outer=outer, init=init)
    return hypergradient(problem, dynamics, lam, steps=steps, engine=Reverse()), dynamics


def by_heads(lam, y, query_labels, loss, steps, form):
    lam = {name: leaf.clone().requires_grad_() for name, leaf in lam.items()}
    head = heads.descend(
        lam["support"],
        y,
        steps=steps,
        step_size=lam["step"],
        scale=lam["scale"],
        decay=lam["decay"],
        momentum=lam["momentum"],
        initial={name: lam[name] for name in ("weight", "bias")} if "weight" in lam else None,
        loss=loss,
        form=form,
    )
    scores = heads.logits(head, lam["query"])
    value = heads.cross_entropy(scores, query_labels).mean()
    grads = torch.autograd.grad(
        value, tuple(lam.values()), allow_unused=True, materialize_grads=True
    )
    return head, value, dict(zip(lam, grads, strict=True))


def agree(found, expected):
    return torch.linalg.vector_norm(found - expected) <= 1e-10 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("form", list(heads.Form))
@pytest.mark.parametrize("loss", [heads.CROSS_ENTROPY, heads.SQUARED], ids=["entropy", "squared"])
@pytest.mark.parametrize(
    ("steps", "option"), [*itertools.product([0, 1, 2, 5], OPTIONS), (64, "all")]
)
def test_heads_and_their_gradients_are_those_of_the_reverse_engine(steps, option, loss, form):
    lam, support_labels, query_labels = chosen(option, steps)
    y = heads.one_hot(support_labels, WAY, lam["support"])
    computed, dynamics = by_core(lam, y, query_labels, loss, steps)
    head, value, grads = by_heads(lam, y, query_labels, loss, steps, form)
    for name, leaf in dynamics.params(computed.state).items():
        assert agree(head[name], leaf), name
    assert agree(value, computed.value)
    for name in lam:
        assert agree(grads[name], computed.grad[name]), name
    assert steps == 0 or grads["support"].abs().max() > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_the_closed_form_is_the_reverse_engine_too(steps):
    lam, support_labels, query_labels = chosen("decay", steps)
    del lam["momentum"]
    y = heads.one_hot(support_labels, WAY, lam["support"])
    computed, _ = by_core(lam, y, query_labels, heads.SQUARED, steps)
    lam = {name: leaf.clone().requires_grad_() for name, leaf in lam.items()}
    head = heads.closed_form(
        lam["support"],
        y,
        steps=steps,
        step_size=lam["step"],
        scale=lam["scale"],
        decay=lam["decay"],
    )
    scores = heads.logits(head, lam["query"])
    value = heads.cross_entropy(scores, query_labels).mean()
    assert agree(value, computed.value)
    for name, grad in zip(lam, torch.autograd.grad(value, tuple(lam.values())), strict=True):
        assert agree(grad, computed.grad[name]), name


def test_heads_at_their_optimum_have_the_hypergradient_of_the_implicit_engine():
    """Unequal classes, a prior that depends on λ, and λ = features, ρ, r and β."""
    found, _, query_labels, _ = episodes()
    labels = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2]])
    y = heads.one_hot(labels, WAY, found["support"])
    numbers = {"decay": 0.4, "shrinkage": 1.2, "temperature": 2.5}
    lam = {name: found[name] for name in ("support", "query")}
    lam |= {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}

    def prior(lam):
        chosen = {name: lam[name] for name in ("shrinkage", "temperature")}
        return heads.class_means(lam["support"], y, **chosen)

    def inner(w, lam):
        start = prior(lam)
        z = lam["support"] @ w["weight"] + start["bias"]
        each = -(y * z.log_softmax(-1)).sum(-1)
        c = (y / y.sum(1, keepdim=True)).sum(-1)
        away = (w["weight"] - start["weight"]).square().sum()
        return (c * each).sum() + 0.5 * lam["decay"] * away

    def outer(w, lam):
        scores = lam["query"] @ w["weight"] + prior(lam)["bias"]
        return heads.cross_entropy(scores, query_labels).mean()

    problem = Problem(
        inner=inner, outer=outer, init=lambda lam: {"weight": 0 * prior(lam)["weight"]}
    )
    dynamics = GradientDescent(step_size=0.2)
    computed = hypergradient(problem, dynamics, lam, steps=400, engine=Implicit())

    own = {name: leaf.clone().requires_grad_() for name, leaf in lam.items()}
    head = heads.solve(own["support"], y, decay=own["decay"], prior=prior(own))
    value = heads.cross_entropy(heads.logits(head, own["query"]), query_labels).mean()
    weight = dynamics.params(computed.state)["weight"]
    assert torch.allclose(head["weight"], weight, rtol=1e-9, atol=1e-10)
    assert agree(value, computed.value)
    for name, grad in zip(own, torch.autograd.grad(value, tuple(own.values())), strict=True):
        expected = computed.grad[name]
        assert torch.linalg.vector_norm(grad - expected) <= 1e-8 * expected.norm(), name
