"""`Implicit` refuses a run that has not converged and a linear system that was not solved."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from bilevel_core import (
    Code,
    ConjugateGradient,
    ConvergenceError,
    Custom,
    Dense,
    FixedPoint,
    GradientDescent,
    Implicit,
    Neumann,
    Problem,
    ProjectedGradient,
    hypergradient,
)
from bilevel_core.backends.torch import TorchBackend
from bilevel_core.hypergradient import checked_run, value_and_gradient
from problems import linear_map, ridge, shift

KNOWN = [shift(), ridge(), linear_map()]
each_problem = pytest.mark.parametrize("known", KNOWN, ids=lambda k: k.name)


def verdict(known, engine, steps=900, dynamics=None):
    dynamics = dynamics or GradientDescent(step_size=known.eta)
    run = checked_run(known.problem, dynamics, known.lam, steps=steps, engine=engine)
    return value_and_gradient(engine, run).result


def implicit_gradient(known, engine, steps=900, dynamics=None):
    dynamics = dynamics or GradientDescent(step_size=known.eta)
    return hypergradient(known.problem, dynamics, known.lam, steps=steps, engine=engine).grad


@each_problem
@pytest.mark.parametrize("step_size", [1e3, 1e300], ids=["blows up", "overflows"])
@pytest.mark.parametrize("tolerance", [1e-3, None])
def test_a_series_that_is_not_finite_is_not_solved(known, step_size, tolerance):
    engine = Implicit(solver=Neumann(steps=900, step_size=step_size), tolerance=tolerance)
    assert verdict(known, engine).code is Code.NOT_SOLVED
    with pytest.raises(ConvergenceError, match=r"not solved.*smaller solver step size"):
        implicit_gradient(known, engine)


@each_problem
@pytest.mark.parametrize(
    "make_solver",
    [
        lambda eta: Neumann(steps=2, step_size=0.01 * eta),
        lambda eta: FixedPoint(steps=2, step_size=0.01 * eta),
        lambda eta: Neumann(steps=20, step_size=100 * eta),
    ],
    ids=["short series", "short iteration", "growing series"],
)
def test_a_solver_that_stops_short_is_refused_unless_asked_for(known, make_solver):
    solver = make_solver(known.eta)
    result = verdict(known, Implicit(solver=solver))
    assert result.code is Code.NOT_SOLVED
    assert result.measured > 1e-3
    assert result.step is None
    with pytest.raises(ConvergenceError, match=r"relative residual .* more solver steps"):
        implicit_gradient(known, Implicit(solver=solver))
    assert torch.isfinite(implicit_gradient(known, Implicit(solver=solver, tolerance=None))).all()


@pytest.mark.parametrize("lam", [1.7, 0.01])
def test_the_residual_is_the_one_of_the_system(lam):
    """Two terms at η = ½ on the identity leave (1 - η)² = ¼ of the right-hand side."""
    known = replace(shift(), lam=torch.tensor(lam, dtype=torch.float64))
    solver = Neumann(steps=2, step_size=0.5)
    assert verdict(known, Implicit(solver=solver)).measured == pytest.approx(0.25)
    assert verdict(known, Implicit(solver=solver, tolerance=0.26)).code is Code.SUCCESS
    assert verdict(known, Implicit(solver=solver, stationarity=None)).code is Code.NOT_SOLVED


@dataclass(frozen=True)
class One:
    """A solver that returns 1 whatever the system is."""

    def __call__(self, product, b, backend, *, symmetric):
        return torch.ones_like(b)


def test_a_residual_beside_a_right_hand_side_of_zero_is_beyond_all_bounds():
    known = shift()
    problem = replace(known.problem, outer=lambda w, lam: lam**2 + 0 * w)
    result = verdict(replace(known, build=lambda _: problem), Implicit(solver=One()), 90)
    assert (result.code, result.measured) == (Code.NOT_SOLVED, math.inf)


def test_a_singular_hessian_is_not_solved():
    flat = Problem(
        inner=lambda w, lam: 0 * (w * lam).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=lambda lam: 1.0 * lam,
    )
    lam = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="not solved"):
        hypergradient(flat, GradientDescent(step_size=0.1), lam, steps=3, engine=Implicit())


def test_a_zero_right_hand_side_is_solved():
    known = shift()
    problem = Problem(
        inner=known.problem.inner, outer=lambda w, lam: lam**2 + 0 * w, init=known.problem.init
    )
    descent = GradientDescent(step_size=0.3)
    grad = hypergradient(problem, descent, known.lam, steps=90, engine=Implicit()).grad
    assert grad == 2 * known.lam


@each_problem
@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_not_converged_is_refused_unless_asked_for(known, steps):
    result = verdict(known, Implicit(), steps)
    assert result.code is Code.NOT_STATIONARY
    assert result.measured > 1e-2
    with pytest.raises(ConvergenceError, match=f"after {steps} inner steps.*more steps T"):
        implicit_gradient(known, Implicit(), steps)
    assert torch.isfinite(implicit_gradient(known, Implicit(stationarity=None), steps)).all()


@pytest.mark.parametrize("lam", [1.7, 0.01])
def test_the_gradient_left_is_measured_against_that_at_the_start(lam):
    """On ½(w - λ)² a step multiplies the gradient by 1 - η."""
    known = replace(shift(), lam=torch.tensor(lam, dtype=torch.float64))
    descent = GradientDescent(step_size=0.3)
    assert verdict(known, Implicit(), 3, descent).measured == pytest.approx(0.7**3)
    assert verdict(known, Implicit(stationarity=0.35), 3, descent).code is Code.SUCCESS


def test_a_run_that_leaves_the_optimum_is_beyond_all_bounds():
    known = shift()
    warm = replace(known.problem, init=lambda lam: 1.0 * lam)
    leaving = Custom(update=lambda w, lam, t: w + 1.0)
    result = verdict(replace(known, build=lambda _: warm), Implicit(), 2, leaving)
    assert (result.code, result.measured) == (Code.NOT_STATIONARY, math.inf)


def with_batches(batches):
    known = shift()
    return Problem(
        inner=lambda w, lam, batch: 0.5 * (w - lam) ** 2 * batch,
        outer=known.problem.outer,
        init=known.problem.init,
        batches=batches,
    )


@pytest.mark.parametrize("accepted", [{}, {"tolerance": None}, {"stationarity": None}], ids=str)
def test_batches_are_refused(accepted):
    engine = Implicit(solver=Neumann(steps=2, step_size=0.5), **accepted)
    words = r"^Implicit judges .* has batches: give a problem without, use Reverse, or accept"
    with pytest.raises(ValueError, match=words):
        hypergradient(
            with_batches(lambda t: 1.0),
            GradientDescent(step_size=0.3),
            shift().lam,
            steps=2,
            engine=engine,
        )


@pytest.mark.parametrize("solver", [ConjugateGradient(), Dense()], ids=str)
def test_solvers_that_need_one_operator_are_refused_with_batches(solver):
    engine = Implicit(solver=solver, tolerance=None, stationarity=None)
    descent = GradientDescent(step_size=0.3)
    with pytest.raises(ValueError, match=f"^{type(solver).__name__} needs the same operator"):
        hypergradient(with_batches(lambda t: 1.0), descent, shift().lam, steps=2, engine=engine)


def test_where_no_check_is_asked_for_each_product_sees_the_next_batch():
    """On ½ b (w - λ)² a product is b v; the last pullback takes that of the slope, of T + 1."""
    asked = []

    def batches(t):
        asked.append(t)
        return 0.5 if t == 3 else 1.0

    solver = Neumann(steps=2, step_size=0.5)
    engine, descent = (
        Implicit(solver=solver, tolerance=None, stationarity=None),
        GradientDescent(step_size=0.3),
    )
    lam = shift().lam
    grad = hypergradient(with_batches(batches), descent, lam, steps=2, engine=engine).grad
    w = lam * (1 - 0.7**2)
    v = solver(lambda v: v, w, TorchBackend(), symmetric=True)
    assert grad.item() == pytest.approx(0.5 * v.item(), rel=1e-12)
    assert [t for t in asked if t > 2] == [3, 4]


@each_problem
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_start_at_the_optimum_is_accepted(known, steps):
    """Also where w_0 is so near it that the steps cannot reduce the gradient any further."""

    def init(lam):
        w = known.problem.init(lam)
        hessian = torch.func.hessian(known.problem.inner)(w, lam)
        slope = torch.func.grad(known.problem.inner)(w, lam)
        if not w.dim():
            return w - slope / hessian
        return w - torch.linalg.solve(hessian, slope)

    warm = Problem(inner=known.problem.inner, outer=known.problem.outer, init=init)
    lam = known.lam.clone().requires_grad_()
    (exact,) = torch.autograd.grad(known.limit(lam), lam)
    descent = GradientDescent(step_size=known.eta)
    grad = hypergradient(warm, descent, known.lam, steps=steps, engine=Implicit()).grad
    assert torch.allclose(grad, exact, rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("lam", [1.0, 0.3, -1e6])
@pytest.mark.parametrize(
    ("left", "code"), [(0.98, Code.SUCCESS), (1.02, Code.NOT_STATIONARY)], ids=["near", "off"]
)
def test_a_gradient_of_the_size_of_rounding_is_accepted(scale, lam, left, code):
    """The bound is 100 ε ‖H‖ (1 + ‖w‖); on ½ s (w - λ)² the gradient is s (w - λ) for any s."""
    warm = Problem(
        inner=lambda w, lam: scale * 0.5 * (w - lam) ** 2,
        outer=lambda w, lam: 0.5 * w**2,
        init=lambda lam: lam + left * 100 * 2.0**-52 * (1 + lam.abs()),
    )
    descent = GradientDescent(step_size=0.3)
    at = torch.tensor(lam, dtype=torch.float64)
    run = checked_run(warm, descent, at, steps=0, engine=Implicit())
    assert value_and_gradient(Implicit(), run).result.code is code


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    ("left", "code"), [(0.99, Code.SUCCESS), (1.005, Code.NOT_STATIONARY)], ids=["near", "off"]
)
def test_so_is_one_at_a_start_at_zero(scale, left, code):
    """Powers of the Hessian on w say nothing there; those on ones say how large it is."""
    problem = Problem(
        inner=lambda w, lam: scale * 0.5 * (w - lam) ** 2,
        outer=lambda w, lam: 0.5 * w**2,
        init=lambda lam: 0 * lam,
    )
    at = torch.tensor(left * 100 * 2.0**-52, dtype=torch.float64)
    run = checked_run(problem, GradientDescent(step_size=0.3), at, steps=0, engine=Implicit())
    assert value_and_gradient(Implicit(), run).result.code is code


@pytest.mark.parametrize(("left", "code"), [(0.02, Code.SUCCESS), (0.05, Code.NOT_STATIONARY)])
def test_half_precision_accepts_no_more_than_its_digits_say(left, code):
    """100 ε would be 0.098 in float16; 0.03 takes its place."""
    problem = Problem(
        inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        outer=lambda w, lam: 0.5 * w**2,
        init=lambda lam: 0 * lam,
    )
    at = torch.tensor(left, dtype=torch.float16)
    run = checked_run(problem, GradientDescent(step_size=0.3), at, steps=0, engine=Implicit())
    assert value_and_gradient(Implicit(), run).result.code is code


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_a_run_that_has_hardly_begun_is_refused_whatever_the_scale_of_the_objective(scale):
    problem = Problem(
        inner=lambda w, lam: scale * 0.5 * ((w - lam) ** 2).sum(),
        outer=lambda w, lam: 0.5 * (w**2).sum(),
        init=torch.zeros_like,
    )
    short, engine = GradientDescent(step_size=1e-4 / scale), Implicit(stationarity=1e-6)
    with pytest.raises(ConvergenceError, match="not a stationary point"):
        hypergradient(problem, short, torch.ones(3), steps=1, engine=engine)


def test_a_float32_run_that_starts_where_another_stood_still_is_accepted():
    """Rounding stops descent where η ‖∇L‖ is below ε ‖w‖: no step reduces that gradient."""
    curvature = torch.logspace(0, -2, 8)

    def problem(init):
        return Problem(
            inner=lambda w, lam: 0.5 * (curvature * (w - lam) ** 2).sum(),
            outer=lambda w, lam: (w**2).sum(),
            init=init,
        )

    lam, descent = torch.linspace(1, 3, 8), GradientDescent(step_size=1.0)
    w = hypergradient(problem(torch.zeros_like), descent, lam, steps=2_000).state
    assert (w != lam).any()
    warm = problem(lambda lam: w)
    grad = hypergradient(warm, descent, lam, steps=5, engine=Implicit()).grad
    assert torch.allclose(grad, 2 * lam, rtol=1e-3)


def test_an_active_bound_is_refused_and_an_idle_one_is_not():
    known = shift()  # the free minimiser is λ = 1.7

    def boxed(bound):
        return ProjectedGradient(step_size=0.3, projection=lambda w, lam: torch.clamp(w, max=bound))

    assert verdict(known, Implicit(), 900, boxed(1.0)).code is Code.NOT_STATIONARY
    with pytest.raises(ConvergenceError, match="Reverse; the limit of a projected or custom"):
        implicit_gradient(known, Implicit(), 900, boxed(1.0))
    assert torch.allclose(implicit_gradient(known, Implicit(), 900, boxed(2.0)), known.lam)


def test_a_map_whose_limit_is_elsewhere_is_refused():
    elsewhere = Custom(update=lambda w, lam, t: 0.5 * w - lam)
    assert verdict(shift(), Implicit(), 900, elsewhere).code is Code.NOT_STATIONARY


def test_a_diverging_run_is_called_that_first():
    fast = GradientDescent(step_size=3.0)
    assert verdict(shift(), Implicit(), 100, fast).code is Code.GROWING


def test_float32_meets_the_default_tolerances():
    known = ridge()
    problem = Problem(
        inner=lambda w, lam: ((w - lam) ** 2 * torch.linspace(0.1, 1, 5)).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    lam = known.lam.float()
    grad = hypergradient(
        problem, GradientDescent(step_size=0.4), lam, steps=300, engine=Implicit()
    ).grad
    assert torch.allclose(grad, 2 * lam, rtol=1e-4)


@dataclass(frozen=True)
class Asked:
    """A solver that notes what it is told of the operator."""

    told: list

    def __call__(self, product, b, backend, *, symmetric):
        self.told.append(symmetric)
        return ConjugateGradient()(product, b, backend, symmetric=symmetric)


def test_the_solver_is_told_that_the_hessian_is_symmetric():
    told = []
    implicit_gradient(ridge(), Implicit(solver=Asked(told)))
    assert told == [True]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["tolerance", "stationarity"])
def test_bounds_that_nothing_can_meet_are_refused(name, bad):
    with pytest.raises(ValueError, match=f"{name} must be above 0, or None"):
        Implicit(**{name: bad})


def test_an_outer_objective_without_a_slope_is_not_the_solvers_fault():
    """√w has no derivative at the limit w = 0: the gradient says so, and the run went well."""
    start = torch.ones(2, dtype=torch.float64)
    problem = Problem(
        inner=lambda w, lam: lam * (w**2).sum() / 2,
        outer=lambda w, lam: w.abs().sqrt().sum(),
        init=lambda lam: start,
    )
    lam = torch.tensor(1.0, dtype=torch.float64)
    run = checked_run(problem, GradientDescent(step_size=1.0), lam, steps=3, engine=Implicit())
    found = value_and_gradient(Implicit(), run)
    assert found.result.code is Code.SUCCESS
    assert found.value == 0
    assert not torch.isfinite(found.grad)


def test_a_start_at_an_optimum_at_zero_is_accepted():
    """There only rounding is left of the gradient, and there is no size of w to measure it by."""
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(20, 4, dtype=torch.float64, generator=draw)
    x = torch.cat([half, half])  # each point once with either label: the optimum is w = 0
    y = torch.cat([torch.ones(20), torch.zeros(20)]).double()
    problem = Problem(
        inner=lambda w, lam: (
            torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y)
            + lam.exp() * (w**2).sum()
        ),
        outer=lambda w, lam: ((w - 1) ** 2).sum() + lam**2,
        init=lambda lam: torch.zeros(4, dtype=torch.float64),
    )
    found = hypergradient(
        problem,
        GradientDescent(step_size=0.1),
        torch.tensor(0.5, dtype=torch.float64),
        steps=20,
        engine=Implicit(),
    )
    assert found.grad == pytest.approx(1.0)
