"""The exact engine and the direct solver against closed forms."""

import dataclasses

import pytest
import torch

from bilevel_core import (
    Custom,
    Dense,
    DivergenceError,
    Exact,
    Flow,
    GradientDescent,
    HeavyBall,
    Implicit,
    Instance,
    Problem,
    ProjectedGradient,
    hypergradient,
)
from bilevel_core.backends.torch import TorchBackend
from problems import ALL, ridge, shift

BACKEND = TorchBackend()
DESCENT = GradientDescent(step_size=0.1)
each_problem = pytest.mark.parametrize("known", ALL, ids=lambda k: f"{k.name}-{k.lam.numel()}")


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def exact(problem, lam, steps=3, dynamics=DESCENT):
    return hypergradient(problem, dynamics, lam, steps=steps, engine=Exact())


@each_problem
@pytest.mark.parametrize("steps", [0, 5])
def test_value_and_gradient_are_those_of_the_closed_form(known, steps):
    computed = exact(known.problem, known.lam, steps)
    lam = known.lam.clone().requires_grad_()
    value = known.limit(lam)
    (grad,) = torch.autograd.grad(value, lam)
    assert torch.allclose(computed.value, value, rtol=1e-11)
    assert torch.allclose(computed.grad, grad, rtol=1e-10, atol=1e-14)


def test_a_long_run_tends_to_it():
    known = ridge()
    limit = exact(known.problem, known.lam)
    run = hypergradient(known.problem, DESCENT, known.lam, steps=1500)
    assert torch.allclose(run.value, limit.value, rtol=1e-10)
    assert torch.allclose(run.grad, limit.grad, rtol=1e-8)
    assert torch.allclose(run.state, limit.state, rtol=1e-8)


def test_the_state_is_the_dynamics_start_at_the_minimiser():
    state = exact(shift().problem, shift().lam, dynamics=HeavyBall(step_size=0.1)).state
    assert state["w"].item() == pytest.approx(1.7, rel=1e-15)
    assert state["velocity"].item() == 0


def test_neither_the_steps_nor_the_dynamics_change_a_digit():
    known, elsewhere = ridge(), Custom(update=lambda w, lam, t: w + 1.0)
    expected = exact(known.problem, known.lam, 0)
    found = exact(known.problem, known.lam, 7, elsewhere)
    for name in ("value", "grad", "state"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def boxed(high):
    return ProjectedGradient(step_size=0.1, projection=lambda w, lam: w.clamp(0.0, high))


def test_a_set_that_leaves_the_minimiser_out_is_refused():
    """The free minimiser is λ = 1.7: within a box up to 1 the limit is neither it nor its value."""
    with pytest.raises(ValueError, match=r"^Exact takes the free minimiser.*use Reverse$"):
        exact(shift().problem, shift().lam, dynamics=boxed(1.0))


def test_a_set_that_holds_the_minimiser_changes_nothing():
    inside, free = (exact(shift().problem, shift().lam, dynamics=d) for d in (boxed(2.0), DESCENT))
    assert torch.equal(inside.grad, free.grad)
    assert torch.equal(inside.value, free.value)


def test_a_set_that_moves_with_the_hyperparameter_is_that_of_it():
    follows = ProjectedGradient(
        step_size=0.1, projection=lambda w, lam: torch.minimum(w, 2 * lam.abs())
    )
    followed, free = (exact(shift().problem, shift().lam, dynamics=d) for d in (follows, DESCENT))
    assert torch.equal(followed.state, free.state)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_how_far_dynamics_may_move_a_start_is_a_share_of_it(size):
    problem = Problem(
        inner=lambda w, lam: 0.5 * ((w - size * lam) ** 2).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )

    def moving(share):
        return ProjectedGradient(step_size=0.1, projection=lambda w, lam: w * (1 + share))

    rounded = exact(problem, tensor(1.0, 2.0), dynamics=moving(1e-10))
    assert torch.allclose(rounded.grad, 2 * size**2 * tensor(1.0, 2.0), rtol=1e-8)
    with pytest.raises(ValueError, match="ProjectedGradient"):
        exact(problem, tensor(1.0, 2.0), dynamics=moving(1e-6))


def tree_problem():
    """L = ½ wᵀ H w - ⟨λ, w⟩ with w in two leaves, so w_λ = H⁻¹ λ; E = ⟨c, w⟩, so ∇f = H⁻¹ c."""
    hessian = tensor([2.0, 0.5, 0.1], [0.5, 3.0, -1.0], [0.1, -1.0, 4.0])
    c = tensor(1.0, -2.0, 0.5)

    def join(w):
        return torch.cat([w["a"].reshape(-1), w["b"][0].reshape(-1)])

    problem = Problem(
        inner=lambda w, lam: 0.5 * join(w) @ hessian @ join(w) - lam @ join(w),
        outer=lambda w, lam: c @ join(w),
        init=lambda lam: {"a": torch.ones_like(lam[0]), "b": (torch.ones_like(lam[1:]),)},
    )
    return problem, hessian, c


def test_parameters_in_a_tree():
    problem, hessian, c = tree_problem()
    lam = tensor(0.3, 0.2, -0.7)
    computed = exact(problem, lam)
    assert computed.state["a"].shape == ()
    assert torch.allclose(computed.value, c @ torch.linalg.solve(hessian, lam), rtol=1e-13)
    assert torch.allclose(computed.grad, torch.linalg.solve(hessian, c), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_scale_of_the_objective_does_not_matter(scale):
    known = ridge()
    scaled = dataclasses.replace(
        known.problem, inner=lambda w, lam: scale * known.problem.inner(w, lam)
    )
    assert torch.allclose(
        exact(scaled, known.lam).grad, exact(known.problem, known.lam).grad, rtol=1e-10
    )


def test_a_start_at_the_minimiser_is_accepted():
    known = ridge()
    w = exact(known.problem, known.lam).state
    warm = dataclasses.replace(known.problem, init=lambda lam: w)
    assert torch.allclose(
        exact(warm, known.lam).grad, exact(known.problem, known.lam).grad, rtol=1e-10
    )


def with_inner(inner):
    return Problem(
        inner=inner, outer=lambda w, lam: (w**2).sum(), init=lambda lam: 0.3 * torch.ones_like(lam)
    )


@pytest.mark.parametrize(
    "inner",
    [
        lambda w, lam: ((w - lam) ** 4).sum(),
        lambda w, lam: torch.cosh(w - lam).sum(),
        lambda w, lam: torch.log1p(torch.exp(-w * lam)).sum() + 0.1 * (w**2).sum(),
    ],
    ids=["quartic", "cosh", "logistic"],
)
def test_an_objective_that_is_not_quadratic_is_refused(inner):
    with pytest.raises(ValueError, match=r"^Exact .* quadratic in w.*norm .*: use Implicit or"):
        exact(with_inner(inner), tensor(1.0, 2.0))


X = tensor([1.0, 2.0, 3.0], [0.5, -1.0, 0.1])  # two rows cannot fix three weights


@pytest.mark.parametrize(
    "inner",
    [
        lambda w, lam: 0 * (w * lam).sum(),
        lambda w, lam: (w * lam).sum(),
        lambda w, lam: ((X @ (w - lam)) ** 2).sum(),
        lambda w, lam: ((w - lam) ** 2).sum() - 3 * (w[0] - lam[0]) ** 2,
        lambda w, lam: -((w - lam) ** 2).sum(),
    ],
    ids=["flat", "linear", "rank", "saddle", "maximum"],
)
def test_an_objective_without_one_minimiser_is_refused(inner):
    with pytest.raises(ValueError, match=r"singular or indefinite, with eigenvalues from .* to"):
        exact(with_inner(inner), tensor(1.0, 2.0, 3.0))


def test_an_objective_that_is_not_finite_is_refused():
    with pytest.raises(DivergenceError, match="gradient or Hessian is not finite at w_0"):
        exact(with_inner(lambda w, lam: ((w - lam) / (0 * w)).sum()), tensor(1.0, 2.0))


def test_batches_are_refused():
    problem = dataclasses.replace(shift().problem, batches=lambda t: t)
    flow = Flow(problem=problem, dynamics=DESCENT, backend=BACKEND)
    instance = Instance(flow=flow, lam=shift().lam, steps=1)
    with pytest.raises(ValueError, match="Exact takes one inner objective for all steps"):
        Exact().run(instance, keep=True)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_dense_solves_what_is_not_symmetric(n):
    generator = torch.Generator().manual_seed(n)
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator)
    b = torch.randn(n, dtype=torch.float64, generator=generator)
    x = Dense()(lambda v: matrix @ v, b, BACKEND, symmetric=False)
    assert torch.allclose(matrix @ x, b, rtol=1e-10)


def test_dense_keeps_the_tree():
    matrix, b = tensor([0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 1.0]), tensor(4.0, 5.0, 6.0)

    def split(v):
        return {"a": v[0], "b": [v[1:].reshape(2, 1)]}

    def product(tree):
        return split(matrix @ torch.cat([tree["a"].reshape(1), tree["b"][0].reshape(2)]))

    x = Dense()(product, split(b), BACKEND, symmetric=False)
    assert x["a"].item() == 5.0
    assert x["b"][0].tolist() == [[2.0], [0.0]]


def test_dense_of_the_identity_and_of_a_zero_right_hand_side():
    b = tensor(3.0, -4.0)
    assert torch.equal(Dense()(lambda v: v, b, BACKEND, symmetric=True), b)
    assert not Dense()(lambda v: v, 0 * b, BACKEND, symmetric=True).any()


def test_dense_on_a_singular_system_is_not_finite():
    x = Dense()(lambda v: 0 * v, tensor(3.0, -4.0), BACKEND, symmetric=True)
    assert not torch.isfinite(x).any()


def test_dense_serves_the_implicit_engine():
    known = ridge()
    engine = Implicit(solver=Dense())
    grad = hypergradient(known.problem, DESCENT, known.lam, steps=900, engine=engine).grad
    assert torch.allclose(grad, exact(known.problem, known.lam).grad, rtol=1e-8)


@pytest.mark.jax
def test_jax_has_the_same_exact_gradient():
    jax = pytest.importorskip("jax")
    pytest.importorskip("bilevel_core.backends.jax")
    jax.config.update("jax_enable_x64", True)
    xp = jax.numpy
    problem, hessian, c = tree_problem()

    def join(w):
        return xp.concatenate([w["a"].reshape(-1), w["b"][0].reshape(-1)])

    rows, direction = xp.array(hessian.tolist()), xp.array(c.tolist())
    in_jax = Problem(
        inner=lambda w, lam: 0.5 * join(w) @ rows @ join(w) - lam @ join(w),
        outer=lambda w, lam: direction @ join(w),
        # The other order of keys: JAX sorts those of what it returns.
        init=lambda lam: {"b": (xp.ones_like(lam[1:]),), "a": xp.ones_like(lam[0])},
    )
    expected = exact(problem, tensor(0.3, 0.2, -0.7))
    found = exact(in_jax, xp.array([0.3, 0.2, -0.7]))
    assert float(found.value) == pytest.approx(expected.value.item(), rel=1e-12)
    assert found.grad.tolist() == pytest.approx(expected.grad.tolist(), rel=1e-12)
    flat = dataclasses.replace(in_jax, inner=lambda w, lam: lam @ join(w))
    with pytest.raises(ValueError, match="singular or indefinite"):
        exact(flat, xp.array([0.3, 0.2, -0.7]))
