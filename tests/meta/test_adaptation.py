"""Inner loops on quadratics, whose hypergradients are known, and the methods that are settings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bilevel_core import (
    Checkpointed,
    ConjugateGradient,
    Dense,
    Direct,
    Exact,
    GradientDescent,
    Implicit,
    Reverse,
    Truncated,
    Unrolled,
)
from bilevel_meta.adaptation import Adaptation, AdaptedNetwork, StepSizes
from bilevel_meta.methods.anil import Anil
from bilevel_meta.methods.maml import FirstOrderMaml, Maml
from bilevel_meta.methods.maml_plus import MamlPlus
from bilevel_models import Normalization
from meta_toys import WAY, episodes, learner, logits, network

ETA, T, RHO = 0.2, 2, 2.0
SOLVERS = {
    "cg": Implicit(solver=ConjugateGradient(steps=5), stationarity=None),
    "dense": Implicit(solver=Dense(), stationarity=None),
    "exact": Exact(),
}


class Point(nn.Module):
    """A network that is its weights."""

    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(at, dtype=torch.float64))

    def forward(self, x):
        return self.w


def distance(w, y):
    """½ (w - a)ᵀ H (w - a), y = (H, a)."""
    h, a = y[..., :-1], y[..., -1]
    return 0.5 * (w - a) @ h @ (w - a)


def target(h, a):
    return torch.cat((h, a.unsqueeze(-1)), dim=-1)


# Two tasks on the line: h = 1, a = 0 and h = 4, a = 1.
LINE = [
    target(torch.tensor([[h]]), torch.tensor([a])).double() for h, a in ((1.0, 0.0), (4.0, 1.0))
]


def slope(made, tasks, steps=None):
    """∇f of the mean over tasks, whose query set is their support set."""
    nothing = torch.zeros(1)
    values = [
        made.loss(made.outputs(made.solve({"x": nothing, "y": y}, steps=steps), {}, nothing), y)
        for y in tasks
    ]
    return torch.autograd.grad(sum(values), [made.network.w])[0]


def adapted(at, **settings):
    given = {"steps": T, "step_size": ETA, **settings}
    return AdaptedNetwork(Point(at), distance, Adaptation(**given)).double()


@pytest.mark.parametrize(
    ("optimum", "settings"),
    [
        (0.8, {"steps": 0}),
        (0.0153846, {}),
        (0.0153846, {"engine": Reverse()}),
        (0.2, {"first_order": True}),
        (0.2, {"first_order": True, "engine": Reverse()}),
    ],
    ids=["joint", "maml", "maml-reverse", "fomaml", "fomaml-reverse"],
)
def test_the_optimum_on_two_tasks_is_the_methods_own(optimum, settings):
    weights = {"joint": (1, 4), "maml": (0.8**4, 4 * 0.2**4), "fomaml": (0.8**2, 4 * 0.2**2)}
    exact = {0.8: "joint", 0.0153846: "maml", 0.2: "fomaml"}[optimum]
    m = weights[exact]
    at = m[1] / (m[0] + m[1])
    assert at == pytest.approx(optimum, abs=1e-7)
    found = slope(adapted([at], **settings), LINE)
    torch.testing.assert_close(found, torch.zeros(1).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_optimum_of_the_proximal_problem_is_half_way(name):
    made = adapted([0.5], steps=300, proximal=RHO, engine=SOLVERS[name])
    torch.testing.assert_close(slope(made, LINE), torch.zeros(1).double(), atol=1e-9, rtol=0)


def test_reptile_goes_to_eight_elevenths():
    made = adapted([8 / 11])
    with torch.no_grad():
        ends = [made.solve({"x": torch.zeros(1), "y": y})["w"] for y in LINE]
    torch.testing.assert_close(sum(ends) / 2, made.network.w.detach())


def quadratic(dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    h = root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    a, theta = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    return h, a, theta


def test_in_more_dimensions_the_gradients_are_the_known_ones():
    h, a, theta = quadratic()
    task, eye = [target(h, a)], torch.eye(3, dtype=torch.float64)
    power = torch.linalg.matrix_power(eye - ETA * h, T)
    end = power @ (theta - a) + a
    torch.testing.assert_close(slope(adapted(theta), task), power @ h @ (end - a))
    first = slope(adapted(theta, first_order=True), task)
    torch.testing.assert_close(first, h @ (end - a))
    solution = torch.linalg.solve(h + RHO * eye, h @ a + RHO * theta)
    implicit = slope(adapted(theta, steps=200, proximal=RHO, engine=SOLVERS["dense"]), task)
    torch.testing.assert_close(implicit, torch.linalg.solve(eye + h / RHO, h @ (solution - a)))


def test_a_strong_proximal_term_leaves_the_start():
    h, a, theta = quadratic()
    made = adapted(theta, steps=50, step_size=1e-8, proximal=1e8, engine=SOLVERS["dense"])
    torch.testing.assert_close(slope(made, [target(h, a)]), h @ (theta - a), rtol=1e-6, atol=0)


def test_learned_sizes_have_their_own_gradient():
    h, a, theta = quadratic()
    made = adapted(theta, steps=1, step_sizes=StepSizes.COORDINATE)
    alpha = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    made.sizes[0].data.copy_(alpha)
    y, nothing = target(h, a), torch.zeros(1)
    end = made.solve({"x": nothing, "y": y})
    loss = made.loss(made.outputs(end, {}, nothing), y)
    by_start, by_size = torch.autograd.grad(loss, [made.network.w, made.sizes[0]])
    step = h @ (theta - a)
    beyond = h @ (theta - alpha * step - a)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(by_start, (eye - h @ torch.diag(alpha)) @ beyond)
    torch.testing.assert_close(by_size, -step * beyond)


def test_sizes_that_agree_are_one_size():
    h, a, theta = quadratic()
    plain = slope(adapted(theta, steps=3), [target(h, a)])
    for kind in (StepSizes.COORDINATE, StepSizes.LEAF_AND_STEP):
        found = slope(adapted(theta, steps=3, step_sizes=kind), [target(h, a)])
        torch.testing.assert_close(found, plain)


def test_beyond_the_trained_steps_the_last_size_stays():
    made = adapted([0.3], steps=2, step_sizes=StepSizes.LEAF_AND_STEP)
    made.sizes[0].data.copy_(torch.tensor([0.1, 0.2]))
    w = made.solve({"x": torch.zeros(1), "y": LINE[0]}, steps=4)["w"]
    torch.testing.assert_close(w.detach(), torch.tensor([0.3 * 0.9 * 0.8**3]).double())


def test_a_first_step_on_a_linear_loss_has_no_second_order():
    class Linear(Point):
        pass

    def loss(w, y):
        return (w * y).sum() if y.ndim == 1 else w.square().sum()

    for first_order in (False, True):
        adaptation = Adaptation(steps=2, step_size=ETA, first_order=first_order)
        made = AdaptedNetwork(Linear([1.0, 2.0]), loss, adaptation).double()
        y = torch.tensor([0.5, -1.0], dtype=torch.float64)
        w = made.solve({"x": torch.zeros(1), "y": y})["w"]
        (grad,) = torch.autograd.grad(w.square().sum(), [made.network.w])
        torch.testing.assert_close(grad, 2 * (made.network.w.detach() - 2 * ETA * y))


@pytest.mark.parametrize(
    "engine", [Reverse(), Checkpointed()], ids=lambda engine: type(engine).__name__
)
def test_engines_agree_on_a_network(engine):
    batch = episodes()
    made = [learner("maml", engine=e, steps=3) for e in (Unrolled(), engine)]
    grads = [torch.autograd.grad(m.loss(batch), list(m.parameters())) for m in made]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_tasks_at_once_are_tasks_one_by_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 1)).double()
    made = AdaptedNetwork(net, lambda a, b: (a - b).square().mean(), Adaptation(steps=3))
    x, q = torch.randn(2, 4, 6, 2, dtype=torch.float64)
    y, z = torch.randn(2, 4, 6, 1, dtype=torch.float64)
    together = made.query_losses(x, y, q, z)
    rest = made.lam()["rest"]
    alone = torch.stack(
        [
            made.loss(made.outputs(made.solve({"x": x[i], "y": y[i]}), rest, q[i]), z[i])
            for i in range(4)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    weights = list(net.parameters())
    for a, b in zip(
        torch.autograd.grad(together.sum(), weights),
        torch.autograd.grad(alone.sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "engine",
    [Truncated(horizon=1), Direct(), Implicit(), Exact()],
    ids=lambda engine: type(engine).__name__,
)
def test_an_engine_that_gives_zero_is_refused(engine):
    with pytest.raises(ValueError, match=type(engine).__name__):
        Adaptation(engine=engine)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"step_size": 0.0}, {"step_size": math.nan}])
def test_numbers_that_make_no_run_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Adaptation(**wrong)


def test_no_moving_weight_is_refused():
    with pytest.raises(ValueError, match="moves"):
        AdaptedNetwork(Point([0.0]), distance, Adaptation(moves=lambda _: False))


def same_weights(maml, **more):
    """A learner of the same backbone and last layer as a MAML learner."""
    return maml.adapted.network.backbone, maml.adapted.network.head


def test_maml_that_moves_the_head_alone_is_anil():
    torch.manual_seed(0)
    maml = Maml(network(), way=WAY, moves=lambda name: name.startswith("head.")).double()
    backbone, head = same_weights(maml)
    anil = Anil(backbone, way=WAY, norm=Normalization.EPISODE).double()
    anil.weight.data.copy_(head.weight.mT)
    anil.bias.data.copy_(head.bias)
    batch = episodes()
    torch.testing.assert_close(logits(maml, batch), logits(anil, batch))
    weight = backbone.convolutions[0].weight
    a, b = (torch.autograd.grad(m.loss(batch), [weight])[0] for m in (maml, anil))
    torch.testing.assert_close(a, b)


def test_boil_is_a_step_size_of_zero_for_the_head():
    batch = episodes()
    boil = learner("boil", steps=2)
    sgd = learner("meta-sgd", steps=2, step_size=0.1)
    sgd.adapted.network.load_state_dict(boil.adapted.network.state_dict())
    for name, alpha in zip(sgd.adapted.moving, sgd.adapted.sizes, strict=True):
        alpha.data.fill_(0.0 if name.startswith("head.") else 0.1)
    torch.testing.assert_close(logits(boil, batch), logits(sgd, batch))


def test_no_step_is_the_network_itself():
    batch, made = episodes(), learner("maml", steps=0)
    first = learner("fomaml", steps=0)
    first.load_state_dict(made.state_dict())
    a, b = (
        torch.autograd.grad(m.loss(batch), list(m.parameters()), materialize_grads=True)
        for m in (made, first)
    )
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def test_a_last_layer_from_zero_takes_any_way_and_any_names():
    torch.manual_seed(0)
    made = Maml(network(), way=None).double()
    batch = episodes()
    names = torch.tensor([2, 0, 1])
    other = replace(batch, support_labels=names[batch.support_labels])
    torch.testing.assert_close(logits(made, batch), logits(made, other)[..., names])
    assert logits(made, episodes(way=2)).shape[-1] == 2


def test_another_way_is_refused():
    batch = episodes(way=2)
    with pytest.raises(ValueError, match="way=2"):
        learner("maml").adapt(batch.support, batch.support_labels, 2)


def test_the_first_order_gradient_is_that_of_the_query_loss_at_the_end():
    torch.manual_seed(0)
    made, batch = FirstOrderMaml(network(), way=WAY).double(), episodes(count=1)
    end = {
        k: v[0].detach()
        for k, v in made.adapt(batch.support, batch.support_labels, WAY).weights.items()
    }
    made.loss(batch).backward()
    other = Maml(network(), way=WAY, steps=0).double()
    other.load_state_dict(made.state_dict())
    other.adapted.network.load_state_dict(end, strict=False)
    other.loss(batch).backward()
    for name, parameter in made.adapted.network.named_parameters():
        wanted = other.adapted.network.get_parameter(name).grad
        if name in made.adapted.moving:
            torch.testing.assert_close(parameter.grad, wanted)


def plus(**settings):
    torch.manual_seed(0)
    return MamlPlus(network(), way=WAY, steps=3, anneal=10, **settings).double()


def test_shares_of_the_steps_sum_to_one_at_every_time():
    made = plus()
    for k in range(0, 15, 3):
        made.seen.fill_(k)
        shares = made.shares()
        assert sum(shares) == pytest.approx(1)
        assert all(share > 0 for share in shares)
    assert shares[:2] == pytest.approx([0.01, 0.01])


def test_maml_plus_with_all_weight_on_the_last_step_is_maml(monkeypatch):
    made, batch = plus(), episodes()
    monkeypatch.setattr(MamlPlus, "shares", lambda self: [0.0, 0.0, 1.0])
    maml = Maml(network(), way=WAY, steps=3).double()
    maml.adapted.network.load_state_dict(made.adapted.network.state_dict())
    a, b = made.loss(batch), maml.loss(batch)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    for name in made.adapted.moving:
        torch.testing.assert_close(
            made.adapted.network.get_parameter(name).grad,
            maml.adapted.network.get_parameter(name).grad,
        )
    # One row of offsets a step, which together have the gradient of the one that MAML has.
    for name, rows in zip(made.adapted.offsets, made.offsets, strict=True):
        wanted = maml.adapted.network.get_parameter(name).grad
        torch.testing.assert_close(rows.grad.sum(dim=0), wanted)
    assert int(made.seen) == 1


def test_reptile_with_one_plain_step_is_joint_training():
    made = learner(
        "reptile", steps=1, minibatch=None, dynamics=GradientDescent(step_size=ETA)
    ).train()
    batch = episodes()
    made.loss(batch).backward()
    joint = Maml(network(), way=WAY, steps=0).double()
    joint.adapted.network.load_state_dict(made.adapted.network.state_dict())
    both = batch.united()
    joint.loss(both).backward()
    for name, parameter in made.adapted.network.named_parameters():
        wanted = joint.adapted.network.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, ETA * wanted)


def test_reptile_with_one_task_and_rate_one_ends_where_the_task_does():
    made, batch = learner("reptile", steps=3).train(), episodes(count=1)
    both = batch.united()
    with torch.no_grad():
        end = made.solve(both.support[0], both.support_labels[0], WAY)
    made.loss(batch).backward()
    for name, w in end.items():
        theta = made.adapted.network.get_parameter(name)
        torch.testing.assert_close(theta.detach() - theta.grad, w)


@pytest.mark.parametrize(
    "case", ["maml", "fomaml", "boil", "meta-sgd", "maml++", "reptile", "learned-optimizer"]
)
def test_the_run_of_several_episodes_is_that_of_each(case, monkeypatch):
    batch = episodes(count=3)

    def found(together):
        made = learner(case).train()
        assert made.goes_together(batch.support)
        if not together:
            monkeypatch.setattr(type(made), "goes_together", lambda *_: False)
        made.loss(batch).backward()
        return [p.grad for p in made.parameters() if p.grad is not None], logits(made, batch)

    (grads, scores), (others, alone) = found(True), found(False)
    torch.testing.assert_close(scores, alone)
    for mine, theirs in zip(grads, others, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("case", ["imaml", "meta-lstm"])
def test_what_would_mix_episodes_takes_them_one_by_one(case):
    assert not learner(case).goes_together(episodes().support)


def test_more_steps_than_sizes_were_learned_for_are_warned_of():
    with pytest.warns(UserWarning, match="learned for T = 1"):
        learner("meta-sgd", test_steps=3)
