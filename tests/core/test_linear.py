"""Linear solvers on systems whose solution is known, and at their degenerate ends."""

from functools import partial

import pytest
import torch

from bilevel_core import ConjugateGradient, FixedPoint, Neumann
from bilevel_core.backends.torch import TorchBackend

BACKEND = TorchBackend()
SOLVERS = [ConjugateGradient(), Neumann(steps=3000, step_size=0.1), FixedPoint(step_size=0.1)]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def spd(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return q @ torch.diag(torch.linspace(0.5, 5.0, n, dtype=torch.float64)) @ q.T


@each_solver
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_solution_is_that_of_a_direct_solver(solver, n):
    matrix, b = spd(n), torch.arange(1.0, n + 1, dtype=torch.float64)
    x = solver(lambda v: matrix @ v, b, BACKEND, symmetric=True)
    assert torch.allclose(x, torch.linalg.solve(matrix, b), rtol=1e-8)


@each_solver
def test_the_identity_and_a_zero_right_hand_side(solver):
    b = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert torch.allclose(solver(lambda v: v, b, BACKEND, symmetric=True), b, rtol=1e-10)
    assert not solver(lambda v: v, 0 * b, BACKEND, symmetric=True).any()


def test_the_identity_takes_conjugate_gradient_one_step_and_the_answer_is_returned():
    b = torch.tensor([3.0, -4.0], dtype=torch.float64)
    x = ConjugateGradient(steps=1)(lambda v: v, b, BACKEND, symmetric=True)
    assert torch.equal(x, b)


def test_conjugate_gradient_ends_after_as_many_steps_as_dimensions():
    products = 0

    def product(v):
        nonlocal products
        products += 1
        return matrix @ v

    matrix, b = spd(5), torch.ones(5, dtype=torch.float64)
    x = ConjugateGradient(tolerance=1e-10)(product, b, BACKEND, symmetric=True)
    assert products == 5
    assert torch.allclose(matrix @ x, b)


@each_solver
def test_trees_are_solved_like_the_vector_of_their_entries(solver):
    matrix, b = spd(5), torch.arange(1.0, 6, dtype=torch.float64)

    def split(v):
        return {"a": v[:2], "b": [v[2:].reshape(3, 1)]}

    def join(tree):
        return torch.cat([tree["a"], tree["b"][0].flatten()])

    x = solver(lambda tree: split(matrix @ join(tree)), split(b), BACKEND, symmetric=True)
    assert torch.allclose(join(x), torch.linalg.solve(matrix, b), rtol=1e-8)


@pytest.mark.parametrize("size", [1e-30, 1e-14, 1e25])
def test_conjugate_gradient_does_not_lose_digits_to_the_size_of_the_right_hand_side(size):
    """In float32 the square of a residual of 1e-20 is zero."""
    diagonal = torch.logspace(-2, 0, 20)
    x = ConjugateGradient()(
        lambda v: diagonal * v, torch.full((20,), size), BACKEND, symmetric=True
    )
    assert torch.allclose(x * (diagonal / size), torch.ones(20), rtol=1e-4)


def test_conjugate_gradient_refuses_an_operator_that_is_not_symmetric():
    b = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"needs a symmetric operator.*Neumann or FixedPoint"):
        ConjugateGradient()(lambda v: v, b, BACKEND, symmetric=False)


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=lambda s: type(s).__name__)
def test_the_others_solve_an_operator_that_is_not_symmetric(solver):
    matrix = torch.tensor([[1.0, 2.0], [-2.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([3.0, -4.0], dtype=torch.float64)
    x = solver(lambda v: matrix @ v, b, BACKEND, symmetric=False)
    assert torch.allclose(x, torch.linalg.solve(matrix, b), rtol=1e-8)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize(
    "make", [ConjugateGradient, partial(Neumann, step_size=0.1), partial(FixedPoint, step_size=0.1)]
)
def test_a_solver_without_steps_is_refused(make, steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, found {steps}"):
        make(steps=steps)


def test_the_series_is_cut_where_it_says():
    b = torch.ones(1, dtype=torch.float64)
    x = Neumann(steps=3, step_size=0.5)(lambda v: v, b, BACKEND, symmetric=True)
    assert x.item() == 0.5 * (1 + 0.5 + 0.25)
