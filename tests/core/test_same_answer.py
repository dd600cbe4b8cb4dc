"""The same call gives the same answer, or is refused: state, draws, order, and what is kept."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from bilevel_core import (
    Checkpointed,
    Direct,
    Engine,
    FirstOrder,
    Forward,
    GradientDescent,
    Implicit,
    Neumann,
    Problem,
    Reverse,
    Truncated,
    Unrolled,
    hypergradient,
    minimize_online,
    outer_objective,
)
from frameworks import JAX, jax, needs_jax

torch.manual_seed(0)
X, Y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
RATE = torch.tensor(0.1, dtype=torch.float64)
DESCENT = GradientDescent(step_size=lambda lam, t: lam)


def of_net(net: torch.nn.Module, *, outer_train: bool, inner_train: bool = True) -> Problem:
    start = {name: p.detach().clone() for name, p in net.named_parameters()}

    def loss(w, rows, train):
        return F.mse_loss(functional_call(net.train(train), w, (X[rows],)), Y[rows])

    return Problem(
        inner=lambda w, lam: loss(w, slice(0, 8), inner_train),
        outer=lambda w, lam: loss(w, slice(8, 16), outer_train),
        init=lambda lam: start,
    )


def batch_norm(**settings) -> torch.nn.Module:
    torch.manual_seed(1)
    layers = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, **settings), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 1)).double()


def spectral_norm() -> torch.nn.Module:
    torch.manual_seed(1)
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4))
    return torch.nn.Sequential(layer, torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


class Ageing(torch.nn.Module):
    """A layer whose output depends on how often it has been called."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.calls, self.young = torch.nn.Linear(3, 1), 0, 10**6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inside(x) * (1 + 0.1 * (self.calls > self.young))


@pytest.mark.parametrize("engine", [Reverse(), Checkpointed(), Forward()], ids=str)
def test_running_averages_that_the_outer_objective_reads_are_refused(engine):
    with pytest.raises(ValueError, match=r"module keeps state.*batch norm"):
        hypergradient(of_net(batch_norm(), outer_train=False), DESCENT, RATE, steps=3)


def test_batch_statistics_are_fine():
    problem = of_net(batch_norm(track_running_stats=False), outer_train=False)
    first, second = (hypergradient(problem, DESCENT, RATE, steps=3) for _ in range(2))
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.grad, second.grad)


def test_vectors_of_spectral_norm_are_refused():
    with pytest.raises(ValueError, match=r"keeps? .*state.*spectral norm"):
        hypergradient(of_net(spectral_norm(), outer_train=False), DESCENT, RATE, steps=3)
    hypergradient(
        of_net(spectral_norm().eval(), outer_train=False, inner_train=False),
        DESCENT,
        RATE,
        steps=3,
    )


@pytest.mark.parametrize("engine", [Reverse(), Checkpointed(), Truncated(horizon=4)], ids=str)
def test_a_module_that_changes_in_a_later_step_is_refused(engine):
    net = Ageing().double()
    problem = of_net(net, outer_train=False)
    hypergradient(problem, DESCENT, RATE, steps=1, engine=engine)
    net.calls, net.young = 0, 9  # the checks are through
    with pytest.raises(ValueError, match="a step that was run again led"):
        hypergradient(problem, DESCENT, RATE, steps=6, engine=engine)


class Shuffled:
    """Rows in an order that is another one in every pass."""

    def __init__(self) -> None:
        self.order = torch.arange(6)

    def __call__(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        if t % 3 == 1 and t > 1:
            self.order = torch.randperm(6)
        rows = self.order[2 * ((t - 1) % 3) :][:2]
        return X[rows], Y[rows, 0]


def of_batches(batches) -> Problem:
    return Problem(
        inner=lambda w, lam, b: ((b[0] @ w - b[1]) ** 2).mean() + lam * (w**2).sum(),
        outer=lambda w, lam: ((X @ w - Y[:, 0]) ** 2).mean(),
        init=lambda lam: torch.zeros(3, dtype=torch.float64),
        batches=batches,
    )


@pytest.mark.parametrize(
    "engine", [Reverse(), Checkpointed(), Checkpointed(budget=1), Truncated(horizon=8)], ids=str
)
def test_batches_that_are_shuffled_in_every_pass_are_refused(engine):
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=r"run again led .* from a generator seeded with t"):
        hypergradient(of_batches(Shuffled()), DESCENT, RATE, steps=9, engine=engine)
    lam = RATE.clone().requires_grad_()
    value = outer_objective(of_batches(Shuffled()), DESCENT, lam, steps=9, engine=engine)
    with pytest.raises(ValueError, match="run again led"):
        value.backward()


def test_the_next_of_an_iterator_is_no_batch():
    rows = iter([(X, Y[:, 0])] * 2)
    with pytest.raises(ValueError, match=r"batches\(1\) raised StopIteration: it must be a functi"):
        hypergradient(of_batches(lambda t: next(rows)), DESCENT, RATE, steps=3)


def seeded(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(4, 3, dtype=torch.float64, generator=draw)
    return x, x.sum(1)


SEEDED = of_batches(seeded)


@pytest.mark.parametrize(
    "engine",
    [
        Reverse(),
        Unrolled(),
        Checkpointed(budget=2),
        Truncated(horizon=50),
        Forward(),
        Forward(chunk=1),
    ],
    ids=str,
)
def test_batches_drawn_from_a_seed_work_in_every_engine(engine):
    def value(lam):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for t in range(1, 6):
            (g,) = torch.autograd.grad(SEEDED.inner(w, lam, seeded(t)), w, create_graph=True)
            w = w - lam * g
        return SEEDED.outer(w, lam)

    lam = RATE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(lam), lam)
    found = hypergradient(SEEDED, DESCENT, RATE, steps=5, engine=engine)
    torch.testing.assert_close(found.grad, expected, rtol=1e-10, atol=0)


def test_so_do_they_while_lam_moves():
    sgd = torch.optim.SGD
    run = minimize_online(SEEDED, DESCENT, RATE, steps=5, optimizer=lambda p: sgd(p, lr=1e-3))
    assert len(run.values) == 5
    expected = hypergradient(SEEDED, DESCENT, RATE, steps=1).grad
    assert run.lams[1].item() == pytest.approx(RATE.item() - 1e-3 * expected.item(), rel=1e-10)


def test_batches_in_the_implicit_engine_are_the_stochastic_method():
    with pytest.raises(ValueError, match="tolerance=None and stationarity=None"):
        hypergradient(SEEDED, DESCENT, RATE, steps=3, engine=Implicit())
    lax = Implicit(tolerance=None, stationarity=None)
    with pytest.raises(ValueError, match="ConjugateGradient needs the same operator"):
        hypergradient(SEEDED, DESCENT, RATE, steps=3, engine=lax)


def test_the_stochastic_method_is_unbiased_where_batches_are_the_whole():
    """With the same batch in every step it is the implicit engine itself."""
    whole = of_batches(lambda t: (X, Y[:, 0]))
    one = Problem(
        inner=lambda w, lam: whole.inner(w, lam, (X, Y[:, 0])), outer=whole.outer, init=whole.init
    )
    descent = GradientDescent(step_size=0.2)
    neumann = Neumann(steps=300, step_size=0.2)
    stochastic = Implicit(solver=neumann, tolerance=None, stationarity=None)
    found = hypergradient(whole, descent, RATE, steps=300, engine=stochastic).grad
    expected = hypergradient(one, descent, RATE, steps=300, engine=Implicit()).grad
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_an_outer_objective_that_draws_is_refused_but_where_steps_are_taken_once():
    problem = Problem(
        inner=lambda w, lam: lam * (w**2).sum(),
        outer=lambda w, lam: F.dropout(w, 0.5).sum(),
        init=lambda lam: torch.ones(50, dtype=torch.float64),
    )
    with pytest.raises(ValueError, match="the outer objective of the same w and λ is"):
        hypergradient(problem, DESCENT, RATE, steps=2)
    hypergradient(problem, DESCENT, RATE, steps=2, engine=Unrolled())


# --- What is missing in a framework ------------------------------------------------------------


def fitted(loss) -> Problem:
    return Problem(
        inner=lambda w, lam: loss(X[:8] @ w, Y[:8, 0]),
        outer=lambda w, lam: loss(X[8:] @ w, Y[8:, 0]),
        init=lambda lam: torch.zeros(3, dtype=torch.float64),
    )


def without_steps(run) -> list[int]:
    """Return the steps that were taken before an error in one line."""
    taken = []
    descent = GradientDescent(step_size=lambda lam, t: (taken.append(t), lam)[1])
    with pytest.raises(ValueError, match=r"has no .* derivative in torch") as caught:
        run(descent)
    assert "\n" not in str(caught.value)
    return taken


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, F.soft_margin_loss])
def test_a_loss_without_a_forward_derivative_gives_the_numbers_of_reverse(loss):
    problem = fitted(loss)
    expected = hypergradient(problem, DESCENT, RATE, steps=5).grad
    with pytest.warns(RuntimeWarning, match="no forward derivative in torch.*slower"):
        found = hypergradient(problem, DESCENT, RATE, steps=5, engine=Forward()).grad
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    one, sgd = hypergradient(problem, DESCENT, RATE, steps=1).grad, torch.optim.SGD
    with pytest.warns(RuntimeWarning, match="slower"):
        run = minimize_online(problem, DESCENT, RATE, steps=2, optimizer=lambda p: sgd(p, lr=1e-3))
    assert run.lams[1].item() == pytest.approx((RATE - 1e-3 * one).item(), rel=1e-10)


def test_fused_attention_is_named_before_the_run():
    def attend(w, x):
        q = (x @ w).reshape(1, 1, 8, 3)
        return F.scaled_dot_product_attention(q, q, q).square().mean()

    problem = Problem(
        inner=lambda w, lam: attend(w, X[:8]) + lam * (w**2).sum(),
        outer=lambda w, lam: attend(w, X[8:]),
        init=lambda lam: torch.eye(3, dtype=torch.float64),
    )
    for engine in (Reverse(), Unrolled(), Checkpointed()):
        taken = without_steps(
            lambda descent, engine=engine: hypergradient(
                problem, descent, RATE, steps=50, engine=engine
            )
        )
        assert max(taken) == 1
    hypergradient(problem, DESCENT, RATE, steps=5, engine=Direct())


LEAST = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:an operation has no forward derivative:RuntimeWarning")
@pytest.mark.parametrize("convert", LEAST.values(), ids=LEAST)
@pytest.mark.parametrize(
    "engine",
    [
        Reverse(),
        Unrolled(),
        Checkpointed(),
        Truncated(horizon=9),
        Implicit(stationarity=None, tolerance=None),
        Forward(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_sparse_features_give_the_numbers_of_dense_ones(engine, convert):
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(30, 500, dtype=torch.float64, generator=draw)
    dense *= torch.rand(30, 500, generator=draw) < 0.02
    y = torch.randint(0, 4, (30,), generator=draw)

    def problem(features):
        a, b = features(dense[:20]), features(dense[20:])
        return Problem(
            inner=lambda w, lam: (
                F.cross_entropy(a @ w, y[:20])
                + 0.05 * (w**2).sum()
                + (lam.exp()[:, None] * w[:9] ** 2).sum()
            ),
            outer=lambda w, lam: F.cross_entropy(b @ w, y[20:]),
            init=lambda lam: torch.zeros(500, 4, dtype=torch.float64),
        )

    lam, descent = torch.full((9,), -3.0, dtype=torch.float64), GradientDescent(step_size=0.5)
    want, got = (
        hypergradient(problem(features), descent, lam, steps=6, engine=engine).grad
        for features in (lambda x: x, convert)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


# --- What is kept ------------------------------------------------------------------------------


class Rates(torch.nn.Module):
    """Something large that a step size holds."""

    def forward(self, lam: torch.Tensor, t: int) -> torch.Tensor:
        return lam


@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward()], ids=str)
def test_nothing_is_kept_of_a_call(engine: Engine):
    problem, seen = of_batches(seeded), []

    def call():
        rates = Rates()
        seen.append(weakref.ref(rates))
        descent = GradientDescent(step_size=rates)
        hypergradient(problem, descent, RATE, steps=2, engine=engine)
        lam = RATE.clone().requires_grad_()
        outer_objective(problem, descent, lam, steps=2, engine=engine).backward()

    for _ in range(3):
        call()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


SEVERAL = torch.tensor([0.1, 0.2], dtype=torch.float64)


def halved(lam: torch.Tensor, t: int) -> torch.Tensor:
    return lam / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientDescent(step_size=0.1),
        lambda: GradientDescent(step_size=halved),
        lambda: GradientDescent(step_size=SEVERAL),
        lambda: FirstOrder(GradientDescent(step_size=halved)),
    ],
    ids=["number", "function", "tensor", "nested"],
)
def test_dynamics_that_are_made_anew_are_checked_once(make):
    steps = []

    def inner(w, lam):
        steps.append(w)
        return (w**2).sum()

    problem = Problem(
        inner=inner, outer=lambda w, lam: w.sum() * lam, init=lambda lam: lam.expand(2)
    )
    taken = []
    for _ in range(3):
        steps.clear()
        hypergradient(problem, make(), RATE, steps=4, engine=Unrolled())
        taken.append(len(steps))
    assert taken[0] > taken[1] == taken[2] == 4


def test_the_state_before_the_way_back_goes_with_its_graph():
    lam = RATE.clone().requires_grad_()
    data = torch.ones(3, dtype=torch.float64)
    alive = weakref.ref(data)
    problem = Problem(
        inner=lambda w, lam, x: ((w - x) ** 2).sum() * lam,
        outer=lambda w, lam, x: (w**2).sum(),
        init=lambda lam, x: torch.zeros_like(x),
    )
    value = outer_objective(problem, DESCENT, lam, data, steps=2)
    value.backward()
    del value, data
    gc.collect()
    assert alive() is None


@needs_jax
def test_data_that_change_do_not_compile_anew():
    traced = []

    def inner(w, lam, x):
        traced.append(1)
        return 0.5 * ((w - lam * x) ** 2).sum()

    problem = Problem(
        inner=inner,
        outer=lambda w, lam, x: (w**2).sum(),
        init=lambda lam, x: jax.numpy.zeros_like(x),
    )
    descent, lam = GradientDescent(step_size=0.5), JAX.arrays(RATE)
    counts = []
    for k in range(4):
        x = JAX.arrays(np.full(3, float(k)))
        hypergradient(problem, descent, lam, x, steps=4)
        counts.append(len(traced))
    assert counts[3] - counts[2] == counts[2] - counts[1] <= 1
