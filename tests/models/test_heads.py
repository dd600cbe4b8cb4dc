"""Linear heads against the formulas of their loss, plain steps, exact solutions and differences."""

from fractions import Fraction

import pytest
import torch

from bilevel_models import heads
from bilevel_models.heads import unrolled
from bilevel_models.heads.closed_form import power_differences, power_sums
from bilevel_models.heads.linear import form_for

FORMS = list(heads.Form)
LOSSES = {"entropy": heads.CROSS_ENTROPY, "squared": heads.SQUARED}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def flat(head):
    """W and b as one tensor, (batch, dim + 1, way)."""
    return torch.cat((head["weight"], head["bias"]), dim=1)


def soft_targets(*shape):
    return normal(*shape, seed=1).softmax(-1).requires_grad_()


def repeated(batch=2, n=3, dim=2):
    """Features in which each image stands twice: the Gram matrix has equal eigenvalues."""
    h = normal(batch, n, dim)
    return torch.cat((h, h), dim=1).requires_grad_()


def test_loss_and_gradient_are_those_of_softmax_regression():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 7), generator=generator)
    head = {
        "weight": torch.randn(3, 5, 4, dtype=torch.float64, generator=generator).requires_grad_(),
        "bias": torch.randn(3, 1, 4, dtype=torch.float64, generator=generator).requires_grad_(),
    }
    loss = heads.cross_entropy(heads.logits(head, h), labels)
    assert loss.shape == (3,)
    scores = h @ head["weight"] + head["bias"]
    probabilities = scores.softmax(-1)
    picked = probabilities.gather(-1, labels[..., None])[..., 0]
    assert torch.allclose(loss, -picked.log().mean(1), rtol=1e-12)

    grad_weight, grad_bias = torch.autograd.grad(loss.sum(), (head["weight"], head["bias"]))
    residual = (probabilities - torch.nn.functional.one_hot(labels, 4)) / 7
    assert torch.allclose(grad_weight, h.mT @ residual, rtol=1e-12)
    assert torch.allclose(grad_bias, residual.sum(1, keepdim=True), rtol=1e-12, atol=1e-14)


def test_zeros_take_kind_and_size_from_the_features():
    head = heads.zeros(torch.rand(2, 3, 8, dtype=torch.float64), way=5)
    assert head["weight"].shape == (2, 8, 5)
    assert head["bias"].shape == (2, 1, 5)
    assert head["weight"].dtype == torch.float64
    assert not head["weight"].any()


def test_accuracy_counts_each_episode():
    scores = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.5], [1.0, 0.0, 0.0]]])
    labels = torch.tensor([[0, 2], [0, 1]])
    assert heads.accuracy(scores, labels).tolist() == [1.0, 0.5]


def test_one_hot_has_a_column_for_a_class_without_images():
    found = heads.one_hot(torch.tensor([[1, 0]]), 3, normal(1))
    assert found.dtype == torch.float64
    assert found.tolist() == [[[0, 1, 0], [1, 0, 0]]]


def test_logits_scale_the_features():
    h, head = normal(2, 3, 4), {"weight": normal(2, 4, 5, seed=1), "bias": normal(2, 1, 5, seed=2)}
    scaled = heads.logits({**head, "scale": torch.tensor(1.7)}, h)
    assert torch.allclose(scaled, heads.logits(head, 1.7 * h), rtol=1e-7)


def test_squared_error_is_half_the_mean_square_distance():
    scores = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    assert heads.squared_error(scores, torch.zeros(1, 2, 2)).tolist() == [0.25 * (9 + 25)]


@pytest.mark.parametrize("form", FORMS)
def test_one_step_from_zero_is_the_formula(form):
    h, labels = normal(2, 4, 3), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    y = heads.one_hot(labels, 3, h)
    head = heads.descend(h, y, steps=1, step_size=0.8, scale=2.0, decay=0.5, form=form)
    residual = (1 / 3 - y) / 4
    assert torch.allclose(head["weight"], -0.8 * 2.0 * h.mT @ residual, rtol=1e-12, atol=1e-15)
    assert torch.allclose(head["bias"], -0.8 * residual.sum(1, keepdim=True), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_are_those_of_differences(steps, name, form):
    sizes = (0.2 + 0.1 * torch.arange(steps, dtype=torch.float64)).requires_grad_()
    initial = {"weight": normal(1, 2, 3).requires_grad_(), "bias": normal(1, 1, 3).requires_grad_()}

    def trained(h, y, eta, s, rho, mu, weight, bias):
        return flat(
            heads.descend(
                h,
                y,
                steps=steps,
                step_size=eta,
                scale=s,
                decay=rho,
                momentum=mu,
                initial={"weight": weight, "bias": bias},
                loss=LOSSES[name],
                form=form,
            )
        )

    inputs = (normal(2, 4, 2).requires_grad_(), soft_targets(2, 4, 3), sizes, number(1.3))
    assert torch.autograd.gradcheck(
        trained, (*inputs, number(0.1), number(0.5), *initial.values()), fast_mode=False
    )


@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"momentum": 0.7}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_without_gradients_nothing_changes_and_nothing_is_kept(form, options):
    h, y = normal(2, 6, 3).requires_grad_(), soft_targets(2, 6, 4)
    chosen = {"steps": 20, "step_size": 0.3, "form": form, **options}
    with_graph = heads.descend(h, y, **chosen)
    with torch.no_grad():
        without = heads.descend(h, y, **chosen)
    assert flat(with_graph).requires_grad
    assert not flat(without).requires_grad
    assert torch.equal(flat(without), flat(with_graph))


@pytest.mark.parametrize("n", [3, 4, 10, 11, 12])
def test_the_cheaper_form_is_taken_and_both_agree(n):
    h, y = normal(2, n, 4), heads.one_hot(torch.arange(n).remainder(3).expand(2, n), 3, normal(1))
    assert form_for(h) is (heads.Form.PRIMAL if n > 10 else heads.Form.GRAM)
    one, other = (heads.descend(h, y, steps=30, step_size=0.4, form=form) for form in FORMS)
    assert torch.allclose(flat(one), flat(other), rtol=1e-11, atol=1e-13)
    assert torch.equal(
        flat(heads.descend(h, y, steps=30, step_size=0.4)), flat(one if n <= 10 else other)
    )


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9])
@pytest.mark.parametrize(
    "train",
    [
        lambda h, y, **chosen: heads.closed_form(h, y, steps=30, step_size=0.4, **chosen),
        lambda h, y, **chosen: heads.ridge(h, y, decay=0.1, **chosen),
    ],
    ids=["closed", "ridge"],
)
def test_the_smaller_matrix_is_taken_and_both_agree(train, n):
    """The last bits tell which of the two it was."""
    h, y = normal(2, n, 4), soft_targets(2, n, 3).detach()
    small, other = heads.Form.GRAM, heads.Form.PRIMAL
    if n > 5:
        small, other = other, small
    found = flat(train(h, y))
    assert torch.equal(found, flat(train(h, y, form=small, scale=1.0)))
    assert not torch.equal(found, flat(train(h, y, form=other)))
    assert torch.allclose(found, flat(train(h, y, form=other)), rtol=1e-11, atol=1e-13)


def saved_numbers(dim, steps):
    """Numbers that autograd keeps for the backward pass."""
    kept = []
    h, y = normal(2, 5, dim).requires_grad_(), soft_targets(2, 5, 3)

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head = heads.descend(h, y, steps=steps, step_size=0.01)
    assert head["weight"].grad_fn is not None
    return sum(kept)


@pytest.fixture
def records(monkeypatch):
    """The records of the runs that are made."""
    made, run = [], unrolled.descend_run

    def watching(*arguments, **options):
        made.append(run(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(unrolled, "descend_run", watching)
    return made


@pytest.mark.parametrize(("asked", "enabled"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("form", FORMS)
def test_states_are_kept_where_a_gradient_is_asked_for(form, asked, enabled, records):
    h, y = normal(2, 4, 3).requires_grad_(asked), soft_targets(2, 4, 5).detach()
    with torch.set_grad_enabled(enabled):
        heads.descend(h, y, steps=7, step_size=0.1, decay=0.1, form=form)
    (record,) = records
    lengths = len(record.states), len(record.residuals), len(record.velocities)
    assert lengths == ((8, 7, 7) if asked and enabled else (1, 1, 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"momentum": 0.5}], ids=str)
def test_velocities_that_are_the_residuals_are_not_stored_twice(form, options, records):
    h, y = normal(2, 4, 3).requires_grad_(), soft_targets(2, 4, 5).detach()
    heads.descend(h, y, steps=7, step_size=0.1, form=form, **options)
    (record,) = records
    assert (record.velocities is record.residuals) == (form is heads.Form.GRAM and not options)


def test_memory_does_not_grow_with_dim_times_steps():
    growth = [saved_numbers(dim, 101) - saved_numbers(dim, 1) for dim in (8, 800)]
    assert growth[0] == growth[1]
    assert growth[0] <= 100 * (3 * 2 * 5 * 3 + 2)


@pytest.mark.parametrize("form", FORMS)
def test_no_steps_leave_the_initial_weights(form):
    h, y, start = normal(2, 4, 3), soft_targets(2, 4, 5), normal(1, 4, 5)
    initial = {"weight": start[:, :-1], "bias": start[:, -1:]}
    chosen = {"steps": 0, "step_size": torch.zeros(0, dtype=h.dtype), "form": form}
    assert not flat(heads.descend(h, y, **chosen)).any()
    assert torch.equal(
        flat(heads.descend(h, y, initial=initial, **chosen)), start.expand(2, -1, -1)
    )


def test_a_backward_pass_can_be_repeated_but_not_differentiated():
    h, y = normal(2, 4, 3).requires_grad_(), soft_targets(2, 4, 5)
    value = flat(heads.descend(h, y, steps=5, step_size=0.3)).square().sum()
    (first,) = torch.autograd.grad(value, h, retain_graph=True)
    (second,) = torch.autograd.grad(value, h, retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(NotImplementedError, match="differentiated only once"):
        torch.autograd.grad(value, h, create_graph=True)


def test_single_precision_stays_single():
    h, y = normal(2, 4, 3).float().requires_grad_(), soft_targets(2, 4, 5).float()
    eta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    head = heads.descend(h, y, steps=5, step_size=eta)
    grad_h, grad_eta = torch.autograd.grad(flat(head).square().sum(), (h, eta))
    assert (head["weight"].dtype, grad_h.dtype, grad_eta.dtype) == (
        torch.float32,
        torch.float32,
        torch.float64,
    )


TRAININGS = {
    "descend": lambda h, y, **chosen: heads.descend(
        h,
        y,
        steps=10,
        step_size=0.5,
        decay=0.1,
        momentum=0.5,
        initial={"weight": normal(1, 32, 5), "bias": normal(1, 1, 5)},
        **chosen,
    ),
    "closed": lambda h, y, **chosen: heads.closed_form(h, y, steps=10, step_size=0.1, **chosen),
    "ridge": lambda h, y, **chosen: heads.ridge(h, y, decay=0.1, **chosen),
}


def relative_error(found, expected):
    return torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_heads_and_their_gradients_are_as_precise_within_autocast(train, form):
    h, y = normal(2, 10, 32), soft_targets(2, 10, 5).detach()

    def trained(h, y):
        h, y = h.requires_grad_(), y.requires_grad_()
        head = train(h, y, form=form)
        return head, torch.autograd.grad(flat(head).square().sum(), (h, y))

    wide, wide_grads = trained(h, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head, grads = trained(h.detach().float(), y.detach().float())
    assert {leaf.dtype for leaf in head.values()} == {torch.float32}
    assert relative_error(flat(head), flat(wide)) < 1e-6
    for found, expected in zip(grads, wide_grads, strict=True):
        assert relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("train", [heads.descend, heads.closed_form], ids=["descend", "closed"])
def test_a_backward_pass_within_autocast_sweeps_in_the_features_precision(train):
    h, y, eta = normal(2, 10, 32).float(), soft_targets(2, 10, 5).detach().float(), number(0.1)
    head = train(h, y, steps=10, step_size=eta, form=heads.Form.PRIMAL)
    value = flat(head).square().sum()
    (expected,) = torch.autograd.grad(value, eta, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(value, eta)
    assert torch.equal(found, expected)


def test_transforms_see_through_ridge_within_autocast():
    h, y = normal(2, 10, 32).float(), soft_targets(2, 10, 5).detach().float()

    def value(h):
        return heads.ridge(h, y, decay=0.1)["weight"].square().sum()

    expected = torch.func.grad(value)(h)
    slope = (expected * h).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(torch.func.grad(value)(h), expected) < 1e-5
        assert relative_error(torch.func.jvp(value, (h,), (h,))[1], slope) < 1e-5


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_targets_of_another_kind_are_refused_within_autocast(train):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="one dtype"):
        train(normal(2, 10, 32).float(), soft_targets(2, 10, 5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("train", [heads.descend, heads.closed_form], ids=["descend", "closed"])
@pytest.mark.parametrize(
    ("factor", "steps", "message"),
    [(2.2, 400, "grows without bound"), (1e3, 400, "heads")],
)
def test_runs_that_diverge_are_refused(train, form, factor, steps, message):
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    largest = torch.linalg.eigvalsh(h @ h.mT + 1).max() / 4
    options = {"loss": heads.SQUARED} if train is heads.descend else {}
    kept = train(h, y, steps=steps, step_size=1.9 / largest, form=form, **options)
    assert flat(kept).isfinite().all()
    with pytest.raises(heads.HeadDivergenceError, match=message) as caught:
        train(h, y, steps=steps, step_size=factor / largest, form=form, **options)
    assert f"T = {steps}" in str(caught.value)
    assert "lower the step size" in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("size", [1.0, 1e-20])
@pytest.mark.parametrize("train", [heads.descend, heads.closed_form], ids=["descend", "closed"])
def test_a_run_may_grow_as_far_as_its_digits_go(train, size):
    """The error grows 3 times a step, |1 - 4|: 3³² < 1/ε = 2⁵² < 3³³."""
    h, y = 0 * normal(1, 1, 2), size * torch.ones(1, 1, 1, dtype=torch.float64)
    options = {"loss": heads.SQUARED} if train is heads.descend else {}
    head = train(h, y, steps=33, step_size=4.0, **options)
    assert head["bias"].item() == pytest.approx(size * (1 + 3.0**33), rel=1e-13)
    found = r"last .* 5\.6e\+15 times" if train is heads.descend else "3 times a step"
    with pytest.raises(heads.HeadDivergenceError, match=f"grows without bound.* {found}"):
        train(h, y, steps=34, step_size=4.0, **options)


def test_a_first_step_of_no_length_is_no_growth():
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    sizes = torch.tensor([0.0, 0.3, 0.3], dtype=torch.float64)
    found = heads.descend(h, y, steps=3, step_size=sizes)
    assert torch.equal(flat(found), flat(heads.descend(h, y, steps=2, step_size=0.3)))


@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"momentum": 0.7}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_step_sizes_that_begin_small_are_no_growth(form, options):
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    found, expected = (
        heads.descend(h, y, steps=4, step_size=sizes, form=form, **options)
        for sizes in torch.tensor([[1e-20, 0.1, 0.1, 0.1], [0.0, 0.1, 0.1, 0.1]]).double()
    )
    assert torch.allclose(flat(found), flat(expected), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("begin", [0.0, 1e-20])
def test_growth_is_found_behind_a_small_first_step(begin):
    """The error grows 3 times a step but for the first: 3³³ < 1/ε = 2⁵² < 3³⁴, of 35 steps."""
    h, y = 0 * normal(1, 1, 2), torch.ones(1, 1, 1, dtype=torch.float64)
    sizes = torch.tensor([begin] + 34 * [4.0], dtype=torch.float64)
    heads.descend(h, y, steps=34, step_size=sizes[:34], loss=heads.SQUARED)
    with pytest.raises(heads.HeadDivergenceError, match=r"last .* 5\.6e\+15 times"):
        heads.descend(h, y, steps=35, step_size=sizes, loss=heads.SQUARED)


def test_initial_weights_take_the_kind_of_the_features():
    h, y, start = normal(2, 4, 3), soft_targets(2, 4, 5).detach(), normal(1, 4, 5).float()
    initial = {"weight": start[:, :-1], "bias": start[:, -1:]}
    wide = {name: leaf.double() for name, leaf in initial.items()}
    for form in FORMS:
        found, expected = (
            flat(heads.descend(h, y, steps=3, step_size=0.3, initial=each, form=form))
            for each in (initial, wide)
        )
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_initial_weights_of_another_training_are_for_the_scale_of_this_one(form):
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    other = heads.ridge(h, y, decay=0.1, scale=3.0)
    plain = {name: other[name] for name in ("weight", "bias")}
    found, expected = (
        heads.descend(h, y, steps=3, step_size=0.3, scale=2.0, initial=each, form=form)
        for each in (other, plain)
    )
    assert torch.equal(flat(found), flat(expected))
    assert found["scale"] == 2.0


@pytest.mark.parametrize("form", FORMS)
def test_a_step_size_that_is_no_number_is_refused(form):
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    for train in (heads.descend, heads.closed_form):
        with pytest.raises(heads.HeadDivergenceError):
            train(h, y, steps=3, step_size=float("nan"), form=form)


@pytest.mark.parametrize("form", FORMS)
def test_a_last_step_that_overflows_is_refused(form):
    """Its gradient is that of the state before, so only where it ended tells."""
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5)
    sizes = torch.tensor([0.1, torch.inf], dtype=torch.float64)
    with pytest.raises(heads.HeadDivergenceError, match="not finite after T = 2"):
        heads.descend(h, y, steps=2, step_size=sizes, form=form)


def test_features_that_are_not_finite_are_refused():
    h, y = normal(2, 4, 3), soft_targets(2, 4, 5).detach()
    h[0, 0, 0] = torch.inf
    with pytest.raises(heads.HeadDivergenceError, match="not finite"):
        heads.descend(h, y, steps=3, step_size=0.1)
    with pytest.raises(heads.HeadDivergenceError, match="not finite"):
        heads.closed_form(h, y, steps=3, step_size=0.1)
    with pytest.raises(heads.HeadDivergenceError, match="not finite"):
        heads.ridge(h, y, decay=0.1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": normal(2, 3, 5)}, ValueError, "one target an image"),
        ({"support": normal(2, 4)}, ValueError, r"^expected support features \(batch, n, dim\)"),
        ({"targets": normal(2, 4)}, ValueError, r"found shapes \(2, 4, 3\) and \(2, 4\)"),
        ({"support": normal(2, 0, 3), "targets": normal(2, 0, 5)}, ValueError, "found none"),
        ({"targets": normal(2, 4, 5).float()}, TypeError, "one dtype"),
        ({"steps": -1}, ValueError, "at least 0, found -1"),
        ({"steps": 2.0}, TypeError, "must be an int, found 2.0"),
        ({"step_size": normal(3)}, ValueError, "one a step"),
        ({"scale": normal(1)}, ValueError, "scale must be a single number"),
        ({"initial": heads.zeros(normal(2, 4, 4), 5)}, ValueError, "expected weight"),
        ({"initial": heads.zeros(normal(3, 4, 3), 5)}, ValueError, "expected weight"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    arguments = {"support": normal(2, 4, 3), "targets": normal(2, 4, 5), "steps": 2}
    with pytest.raises(error, match=message):
        heads.descend(**{**arguments, "step_size": 0.1, **changes})


@pytest.mark.parametrize(
    ("train", "name"),
    [(heads.descend, each) for each in ("scale", "decay", "momentum")]
    + [(heads.closed_form, each) for each in ("scale", "decay", "step_size")]
    + [(heads.ridge, each) for each in ("scale", "decay")],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_what_must_be_one_number_is_named(train, name):
    options = {"decay": 0.1} if train is heads.ridge else {"steps": 2, "step_size": 0.1}
    with pytest.raises(ValueError, match=f"^{name} must be a single number, found shape"):
        train(normal(2, 4, 3), normal(2, 4, 5), **options | {name: normal(2)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 5])
def test_ridge_is_where_the_gradient_is_zero(n, form):
    h, y = normal(2, n, 3), soft_targets(2, n, 4).detach()
    head = heads.ridge(h, y, decay=0.2, scale=1.5, form=form)
    w = flat(head).requires_grad_()
    scores = heads.logits({"weight": w[:, :-1], "bias": w[:, -1:], "scale": head["scale"]}, h)
    loss = heads.squared_error(scores, y).sum() + 0.5 * 0.2 * w.square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.abs().max() < 1e-14
    limit = heads.closed_form(h, y, steps=10**6, step_size=0.1, decay=0.2, scale=1.5, form=form)
    assert torch.allclose(flat(limit), w, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_ridge_is_differentiable_twice(form):
    def solved(h, y, rho, s):
        return flat(heads.ridge(h, y, decay=rho, scale=s, form=form))

    inputs = (repeated(), soft_targets(2, 6, 2), number(0.2), number(1.3))
    assert torch.autograd.gradcheck(solved, inputs)
    assert torch.autograd.gradgradcheck(solved, inputs)


@pytest.mark.parametrize("decay", [0.0, -0.1, float("nan")])
def test_ridge_refuses_a_decay_that_is_not_positive(decay):
    with pytest.raises(ValueError, match="decay must be positive, found"):
        heads.ridge(normal(2, 4, 3), normal(2, 4, 5), decay=decay)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6, 7, 31, 32, 300])
@pytest.mark.parametrize("pair", [(0.5, -0.25), (0.75, 0.75), (1.0, 1.0), (0.0, 1.0), (-1.0, -1.0)])
def test_divided_differences_are_those_of_exact_arithmetic(pair, steps):
    a, b = map(Fraction, pair)
    first = sum((a**k for k in range(steps)), Fraction(0))
    second = Fraction(0)
    inner = Fraction(0)
    for k in range(1, steps):
        # Σ_{l+m=k-1} a^l b^m, from that of k - 1; the sum over k is x^T[a, b, 1].
        inner = a * inner + b ** (k - 1)
        second += inner
    nodes = torch.tensor([pair], dtype=torch.float64)
    assert float(power_sums(1 - nodes, steps)[0, 0]) == pytest.approx(float(first), rel=1e-13)
    found = power_differences(nodes, steps)
    assert float(found[0, 0, 1]) == pytest.approx(float(second), rel=1e-13, abs=1e-13)
    assert torch.allclose(found, found.mT, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("y", [1e-18, 1e-12, -1e-17, 1e-3, 0.499, 0.5, 1.999, 2.0])
def test_geometric_sums_keep_the_digits_of_their_argument(y):
    exact = (1 - (1 - Fraction(y)) ** 4095) / Fraction(y)
    found = power_sums(torch.tensor(y, dtype=torch.float64), 4095)
    assert found.item() == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("features", [repeated, lambda: normal(2, 6, 2).requires_grad_()])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [0, 1, 2, 17, 300])
def test_the_closed_form_is_the_descent(steps, form, features):
    h, y, s, rho = features(), soft_targets(2, 6, 3), number(1.2), number(0.03)
    eta = number(0.4 / (1 + steps / 20))
    cotangent = normal(2, 3, 3, seed=5)
    found = []
    for train, options in (
        (heads.closed_form, {}),
        (heads.descend, {"loss": heads.SQUARED}),
    ):
        head = flat(
            train(h, y, steps=steps, step_size=eta, scale=s, decay=rho, form=form, **options)
        )
        grads = torch.autograd.grad((head * cotangent).sum(), (h, y, eta, s, rho))
        found.append((head, *grads))
    for closed, stepped in zip(*found, strict=True):
        error = torch.linalg.vector_norm(closed - stepped)
        assert error <= 1e-11 * torch.linalg.vector_norm(stepped)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 5, 4096])
def test_the_closed_form_has_the_gradients_of_differences(steps, form):
    """Repeated images, so that eigenvalues coincide; at the longest T, one step beyond 1 / λ."""

    def trained(h, y, eta, s, rho):
        return flat(
            heads.closed_form(h, y, steps=steps, step_size=eta, scale=s, decay=rho, form=form)
        )

    inputs = (repeated(), soft_targets(2, 6, 2), number(0.4), number(1.3), number(0.02))
    assert torch.autograd.gradcheck(trained, inputs, atol=1e-6, rtol=1e-5)
