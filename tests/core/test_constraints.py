"""Sets for λ: coordinates and projections against closed forms, and prefix trees of sets."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bilevel_core import Interval, Positive, Simplex
from bilevel_core.backends.torch import TorchBackend
from bilevel_core.constraints.reparametrization import coordinates

BACKEND = TorchBackend()
BOX = Interval(low=-1.0, high=3.0)
SETS = [Positive(), BOX, Simplex()]
each_set = pytest.mark.parametrize("among", SETS, ids=str)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def read(lam, reparametrize=None, project=None):
    return coordinates(BACKEND, lam, reparametrize=reparametrize, project=project)


@each_set
def test_coordinates_and_points_are_inverse(among):
    lam = tensor([0.2, 0.5, 0.3], [0.01, 0.98, 0.01])
    assert torch.allclose(among.inside(among.free(lam, BACKEND), BACKEND), lam, rtol=1e-14)


@pytest.mark.parametrize(
    ("among", "expected"),
    [
        (Positive(), [math.exp(-2), 1.0, math.exp(0.5)]),
        (BOX, [-1 + 4 / (1 + math.exp(2)), 1.0, -1 + 4 / (1 + math.exp(-0.5))]),
        (Simplex(), [math.exp(x) / (math.exp(-2) + 1 + math.exp(0.5)) for x in (-2, 0, 0.5)]),
    ],
    ids=str,
)
def test_points_are_those_of_the_formula(among, expected):
    assert torch.allclose(among.inside(tensor(-2, 0, 0.5), BACKEND), tensor(*expected), rtol=1e-14)


@each_set
def test_the_map_can_be_differentiated_also_where_its_branches_meet(among):
    theta = tensor(-1.5, 0.0, 0.7, 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: among.inside(x, BACKEND), theta)


@each_set
@pytest.mark.parametrize("size", [40.0, 700.0])
def test_far_out_the_point_stays_in_the_set_and_its_derivative_finite(among, size):
    theta = tensor(-size, 0.0, size).requires_grad_()
    lam = among.inside(theta, BACKEND)
    assert among.contains(lam.detach(), BACKEND)
    (grad,) = torch.autograd.grad(lam[1], theta)
    assert torch.isfinite(grad).all()


def test_rounding_does_not_carry_a_point_past_the_end_of_an_interval():
    among = Interval(low=-0.1, high=0.2)  # -0.1 + (0.2 + 0.1) is above 0.2
    assert among.inside(tensor(900.0), BACKEND).item() == 0.2


def test_small_numbers_keep_their_digits():
    lam = Interval(low=0.0, high=1.0).inside(tensor(-50.0), BACKEND)
    assert lam.item() == pytest.approx(math.exp(-50), rel=1e-12)


def test_projections_by_hand():
    lam = tensor(-2.0, 0.5, 4.0)
    assert torch.equal(Positive().project(lam, BACKEND), tensor(0.0, 0.5, 4.0))
    assert torch.equal(BOX.project(lam, BACKEND), tensor(-1.0, 0.5, 3.0))
    assert torch.equal(Simplex().project(lam, BACKEND), tensor(0.0, 0.0, 1.0))
    assert torch.allclose(
        Simplex().project(tensor([0.5, 0.3, 0.1], [1.0, 0.8, -3.0]), BACKEND),
        tensor([0.5 + 1 / 30, 0.3 + 1 / 30, 0.1 + 1 / 30], [0.6, 0.4, 0.0]),
        rtol=1e-14,
    )


def by_sorting(v):
    """The projection onto the simplex as the paper finds it."""
    u = sorted(v, reverse=True)
    sums = [sum(u[: j + 1]) - 1 for j in range(len(u))]
    rho = max(j for j in range(len(u)) if u[j] - sums[j] / (j + 1) > 0)
    return [max(x - sums[rho] / (rho + 1), 0.0) for x in v]


@given(st.lists(st.floats(min_value=-50, max_value=50), min_size=1, max_size=8))
def test_the_simplex_projection_is_that_of_sorting(numbers):
    found = Simplex().project(tensor(*numbers), BACKEND)
    assert torch.allclose(found, tensor(*by_sorting(numbers)), atol=1e-12)
    assert Simplex().contains(found, BACKEND)


def test_the_simplex_projection_of_large_numbers_keeps_its_digits():
    found = Simplex().project(tensor(1e12, 1e12 - 0.5, 0.0), BACKEND)
    assert torch.equal(found, tensor(0.75, 0.25, 0.0))


@each_set
def test_a_projection_leaves_points_of_the_set(among):
    lam = tensor([0.25, 0.5, 0.25], [0.0, 1.0, 0.0])
    assert torch.equal(among.project(lam, BACKEND), lam)
    assert among.contains(lam, BACKEND)


@pytest.mark.parametrize(
    ("among", "border", "beyond"),
    [(Positive(), 0.0, -1e-9), (BOX, 3.0, 3.1), (BOX, -1.0, -1.1)],
)
def test_the_border_is_in_the_set_but_not_strictly(among, border, beyond):
    assert among.contains(tensor(border), BACKEND)
    assert not among.contains(tensor(border), BACKEND, strictly=True)
    assert not among.contains(tensor(beyond), BACKEND)
    assert not among.contains(tensor(math.nan), BACKEND)


def test_what_is_in_the_simplex():
    among = Simplex()
    assert among.contains(tensor(0.1, 0.2, 0.7), BACKEND, strictly=True)
    assert among.contains(tensor(0.0, 1.0), BACKEND)
    assert not among.contains(tensor(0.0, 1.0), BACKEND, strictly=True)
    assert not among.contains(tensor(0.5, 0.6), BACKEND)
    assert not among.contains(tensor(1.5, -0.5), BACKEND)
    assert not among.contains(torch.tensor(1.0, dtype=torch.float64), BACKEND)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)]
)
def test_an_interval_without_an_inside_is_refused(low, high):
    with pytest.raises(ValueError, match=r"finite ends with low < high.*take Positive"):
        Interval(low=low, high=high)


LAM = {"rate": tensor(0.5), "deep": [tensor(0.25, 0.75), tensor(-3.0)]}


def test_a_set_is_for_every_leaf_under_its_place():
    space = read(LAM, reparametrize={"deep": [Simplex(), None], "rate": Positive()})
    assert space.within == {"rate": Positive(), "deep": [Simplex(), None]}
    assert read(LAM["deep"][0], reparametrize=BOX).within == BOX
    wide = Interval(low=-9, high=9)
    assert read(LAM, project=wide).onto == {"rate": wide, "deep": [wide, wide]}
    assert read(LAM).within == read(LAM).onto == {"rate": None, "deep": [None, None]}


def test_lambda_keeps_the_order_and_the_kind_of_its_start():
    class Pair(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor

    lam = {"z": tensor(1.0), "a": Pair(tensor(2.0), tensor(3.0))}
    space = read(lam, reparametrize={"a": (Positive(), None), "z": None})
    theta = space.free(lam)
    turned = {"a": theta["a"], "z": theta["z"]}
    for found in (space.inside(turned), space.project(turned)):
        assert list(found) == ["z", "a"]
        assert isinstance(found["a"], Pair)
    assert torch.allclose(space.inside(turned)["a"].first, tensor(2.0), rtol=1e-15)
    assert space.inside(turned)["z"] is lam["z"]


def test_the_gradient_in_the_coordinates_is_that_of_autograd():
    space = read(LAM, reparametrize={"rate": Positive(), "deep": [Simplex(), None]})
    theta = space.free(LAM)
    grad = {"rate": tensor(2.0), "deep": [tensor(1.0, -4.0), tensor(5.0)]}
    found = space.pull(grad, theta)
    flat = [leaf.clone().requires_grad_() for leaf in (theta["rate"], *theta["deep"])]
    inside = space.inside({"rate": flat[0], "deep": flat[1:]})
    expected = torch.autograd.grad(
        (inside["rate"], *inside["deep"]), flat, (grad["rate"], *grad["deep"])
    )
    for actual, reference in zip((found["rate"], *found["deep"]), expected, strict=True):
        assert torch.allclose(actual, reference, rtol=1e-14)
    assert torch.equal(found["deep"][1], grad["deep"][1])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            {"reparametrize": {"rate": None, "deep": [Positive(), Positive()]}},
            r"λ\['deep'\]\[1\] starts at -3, which is not strictly inside Positive\(\)",
        ),
        (
            {"reparametrize": {"rate": None, "deep": [Interval(low=0.5, high=1), None]}},
            r"λ\['deep'\]\[0\] starts at values from 0.25 to 0.75, which is not strictly",
        ),
        ({"project": Positive()}, r"λ\['deep'\]\[1\] starts at -3, outside Positive\(\)"),
        (
            {"reparametrize": {"rate": BOX, "deep": None}, "project": {"rate": BOX, "deep": None}},
            r"λ\['rate'\] is given to both reparametrize and project",
        ),
        ({"project": {"rate": BOX}}, r"entries \['rate'\] where λ has \['rate', 'deep'\]"),
        ({"project": {"rate": {"x": BOX}, "deep": None}}, r"project\['rate'\] has entries \['x'\]"),
    ],
)
def test_sets_that_do_not_fit_are_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        read(LAM, **sets)


def test_what_is_no_set_is_refused():
    with pytest.raises(TypeError, match=r"project\['rate'\] is a float: expected a set"):
        read(LAM, project={"rate": 0.5, "deep": None})


def test_a_set_of_the_users_own_is_a_set():
    @dataclass(frozen=True)
    class Above:
        floor: float

        def contains(self, lam, backend, *, strictly=False):
            return bool((lam > self.floor).all())

        def free(self, lam, backend):
            return backend.namespace.log(lam - self.floor)

        def inside(self, theta, backend):
            return self.floor + backend.namespace.exp(theta)

        def project(self, lam, backend):
            return backend.namespace.clip(lam, self.floor, None)

    assert read(LAM, reparametrize=Above(-5.0)).within["rate"] == Above(-5.0)


@pytest.mark.jax
def test_jax_agrees_with_torch():
    jax = pytest.importorskip("jax")
    pytest.importorskip("bilevel_core.backends.jax")
    from bilevel_core.backends.jax import JaxBackend

    jax.config.update("jax_enable_x64", True)
    theta, far = [[-1.5, 0.0, 0.7], [2.0, 2.0, -9.0]], [[-1.5, 0.3, 2.7], [0.5, 0.6, -9.0]]
    for among in SETS:
        for method, at in (("inside", theta), ("project", far)):
            expected = getattr(among, method)(tensor(*at), BACKEND)
            found = getattr(among, method)(jax.numpy.array(at), JaxBackend())
            assert found.tolist() == [pytest.approx(row, rel=1e-13) for row in expected.tolist()]
        lam = among.inside(jax.numpy.array(theta), JaxBackend())
        assert among.contains(lam, JaxBackend(), strictly=True)
        back = among.inside(among.free(lam, JaxBackend()), JaxBackend())
        assert back.tolist() == [pytest.approx(row, rel=1e-13) for row in lam.tolist()]
        jacobian = jax.jacrev(lambda x, among=among: among.inside(x, JaxBackend()))
        expected = torch.func.jacrev(lambda x, among=among: among.inside(x, BACKEND))
        difference = jacobian(jax.numpy.array(theta)).tolist()
        assert torch.allclose(tensor(*difference), expected(tensor(*theta)), rtol=1e-13)
