"""Heads at their optimum: against the gradient of the loss, long descent, differences and core."""

import math

import pytest
import torch

from bilevel_models import heads
from bilevel_models.heads import optimum
from bilevel_models.heads.optimum import Kernel, minimise

SHAPES = {"gram": (2, 4, 3, 3), "weights": (1, 7, 3, 3), "two classes": (1, 3, 6, 2)}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def soft(*shape):
    return normal(*shape, seed=1).softmax(-1)


def task(batch=2, shots=(3, 1, 2), dim=5):
    """Features, labels and targets of classes of unequal size."""
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots)).expand(batch, -1)
    h = torch.nn.functional.normalize(normal(batch, sum(shots), dim), dim=-1)
    return h, labels, heads.one_hot(labels, len(shots), h)


def filled(solver):
    """A module with a running mean that is not zero."""
    solver.running_mean += 0.2 * normal(5, seed=3)
    return solver


def objective(weight, h, y, rho, prior):
    """L of each episode, written out."""
    z = h @ weight + prior["bias"]
    each = -(y * z.log_softmax(-1)).sum(-1)
    counts = y.sum(1, keepdim=True)
    c = (y / counts).sum(-1)
    away = (weight - prior["weight"]).square().sum((1, 2))
    return (c * each).sum(1) + 0.5 * rho * away


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decay", [1e-3, 0.1, 10.0])
def test_the_gradient_of_the_loss_is_zero_there(shape, decay):
    batch, n, dim, way = shape
    h, y = normal(batch, n, dim), soft(batch, n, way)
    prior = heads.class_means(h, y, shrinkage=1.0, temperature=3.0)
    head = heads.solve(h, y, decay=decay, prior=prior)
    weight = head["weight"].requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weight, h, y, decay, prior).sum(), weight)
    assert gradient.abs().max() < 1e-9
    assert torch.equal(head["bias"], prior["bias"])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_those_of_differences(shape):
    batch, n, dim, way = shape
    h, y = normal(batch, n, dim).requires_grad_(), soft(batch, n, way).requires_grad_()
    numbers = [
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, 2.0, 1.5, -0.3)
    ]

    def weights(h, y, decay, beta, r, shift):
        y = y / y.sum(-1, keepdim=True)
        prior = heads.class_means(h, y, shrinkage=r, temperature=beta)
        prior["bias"] = prior["bias"] + shift
        return heads.solve(h, y, decay=decay, prior=prior)["weight"]

    assert torch.autograd.gradcheck(weights, (h, y, *numbers), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_what_a_module_learns_has_the_gradients_of_differences():
    h, labels, _ = task()
    solver = filled(heads.HeadSolver(5).double())
    names = [name for name, _ in solver.named_parameters()]
    solver.forward = solver.fit_labels

    def scores(h, *values):
        given = dict(zip(names, values, strict=True))
        return heads.logits(torch.func.functional_call(solver, given, (h, labels, 3)), h.flip(1))

    values = [p.detach().clone().requires_grad_() for p in solver.parameters()]
    assert len(values) == 3
    assert torch.autograd.gradcheck(scores, (h.requires_grad_(), *values), atol=1e-6, rtol=1e-4)


def test_long_descent_comes_to_the_same_head_and_gradient():
    """Without a prior and with equal numbers; a column of ones is the bias that descent decays."""
    h, _, y = task(shots=(2, 2, 2))
    h = 3 * h
    query, way, rho = normal(2, 6, 5, seed=5), 3, 0.2
    source = h.clone().requires_grad_()
    # Its mean over six images is a third of the sum over classes of the means over their images.
    descended = heads.descend(source, y, steps=1500, step_size=1.0, decay=rho / way)
    (expected,) = torch.autograd.grad(heads.logits(descended, query).square().sum(), source)

    wide = torch.cat((h, torch.ones_like(h[..., :1])), dim=-1).requires_grad_()
    solved = heads.solve(wide, y, decay=rho)
    rows = torch.cat((descended["weight"], descended["bias"]), dim=1)
    assert torch.allclose(solved["weight"], rows, rtol=1e-8, atol=1e-10)
    ones = torch.ones_like(query[..., :1])
    scores = heads.logits(solved, torch.cat((query, ones), dim=-1))
    (found,) = torch.autograd.grad(scores.square().sum(), wide)
    assert torch.linalg.vector_norm(found[..., :-1] - expected) <= 1e-8 * expected.norm()


def test_both_forms_of_the_kernel_are_one():
    x, a = normal(2, 11, 4), normal(2, 11, 3, seed=1)
    weights, rho = normal(2, 11, 1, seed=2).abs(), torch.tensor(0.3, dtype=torch.float64)
    low = Kernel(x)
    full = Kernel(torch.cat((x, torch.zeros(2, 11, 8, dtype=torch.float64)), dim=-1))
    assert low.matrix is None
    assert full.matrix is not None
    assert Kernel(x[:, :8]).matrix is not None
    assert torch.allclose(low @ a, full @ a, rtol=1e-12)
    inverses = [kernel.inverse(rho, weights) @ a for kernel in (low, full)]
    assert torch.allclose(*inverses, rtol=1e-10, atol=1e-12)


def test_rows_of_zeros_are_no_images():
    h, _, y = task()
    wide = torch.cat((h, normal(2, 2, 5, seed=9)), dim=1)
    padded = torch.cat((y, torch.zeros(2, 2, 3, dtype=torch.float64)), dim=1)
    solver = heads.HeadSolver(5).double()
    alone, among = solver.fit(h, y), solver.fit(wide, padded)
    for name in ("weight", "bias"):
        assert torch.allclose(alone[name], among[name], rtol=1e-9, atol=1e-10)


def test_a_class_without_images_takes_no_part_in_the_balance():
    """Each class with images counts as one: the gradient of that loss is zero."""
    h, _, y = task()
    more = torch.cat((y, torch.zeros_like(y[..., :1])), dim=-1)
    prior = heads.class_means(h, more)
    head = heads.solve(h, more, decay=0.1, prior=prior)
    weight = head["weight"].requires_grad_()
    each = -(more * heads.logits({**head, "weight": weight}, h).log_softmax(-1)).sum(-1)
    away = (weight - prior["weight"]).square().sum()
    loss = ((y / y.sum(1, keepdim=True)).sum(-1) * each).sum() + 0.5 * 0.1 * away
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-9


def halved(slope, at):
    """Return the largest power of ½ by which a loss falls by a ten-thousandth of its slope."""
    size = 1.0
    while at(size) > at(0.0) + 1e-4 * size * slope:
        size /= 2
    return size


def test_each_episode_of_a_batch_halves_its_own_step():
    """One image of two classes, K = 4; at the second length the loss falls, but not enough."""
    lengths = (1.0, 2.6322, 30.0, 1000.0)
    ones = torch.ones(len(lengths), 1, 1, dtype=torch.float64)
    y, rho = torch.cat((ones, 0 * ones), dim=-1), torch.tensor(0.1, dtype=torch.float64)
    zero = torch.zeros_like(y)
    # F(0) = p - y = (-½, ½), and the direction of descent against it, which K moves fourfold.
    step = torch.tensor(lengths, dtype=torch.float64).view(-1, 1, 1) * (y - 0.5)
    slope = ((0.5 - y) * 4 * step).sum(dim=(1, 2), keepdim=True)
    before = optimum._loss(zero, zero, zero, y, ones, rho)
    sizes, after = optimum._armijo(zero, zero, step, 4 * step, slope, before, zero, y, ones, rho)
    for k, length in enumerate(lengths):

        def at(size, length=length):
            z = size * length * 4 * 0.5  # of the first class; minus that of the second
            penalty = 0.5 * 0.1 * (size * length) ** 2 * 4 * 2 * 0.25
            return math.log1p(math.exp(-2 * z)) + penalty

        expected = halved(float(slope[k]), at)
        assert sizes[k].item() == expected
        assert after[k].item() == pytest.approx(at(expected), rel=1e-12)
    assert sizes.unique().numel() > 2


def test_how_far_an_episode_is_from_its_optimum_says_nothing_of_another(monkeypatch):
    """The first is at its optimum already; and a search that is cut short there is refused."""
    monkeypatch.setattr(optimum, "NEWTON_STEPS", 1)
    h, _, y = task()
    y = torch.stack((0 * y[0], 0.2 * (y[1] - 1 / 3))) + 1 / 3
    rho, prior = torch.tensor(0.1, dtype=torch.float64), torch.zeros_like(y)
    found = minimise(Kernel(h), prior, y, optimum.balance(y), rho, 1e-9)
    first, second = found.decrement.flatten().tolist()
    assert first < 1e-14
    assert 1e-2 < second < 1.0
    with pytest.raises(heads.HeadDivergenceError):
        heads.solve(h, y, decay=0.1)


def test_a_prior_of_another_training_is_taken_without_its_scale():
    h, _, y = task()
    other = heads.ridge(h, y, decay=0.1, scale=3.0)
    plain = {name: other[name] for name in ("weight", "bias")}
    found, expected = (heads.solve(h, y, decay=0.1, prior=each) for each in (other, plain))
    for name in plain:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("times", [2, 5])
def test_an_image_that_stands_there_several_times_changes_the_regression_nothing(times):
    """Each class counts once, so a copy of every image of one says nothing new."""
    h, _labels, y = task(shots=(2, 1))
    prior = heads.class_means(h, y)
    again = torch.cat((h, *[h[:, :2]] * (times - 1)), dim=1)
    copies = torch.cat((y, *[y[:, :2]] * (times - 1)), dim=1)
    once, several = (
        heads.solve(x, t, decay=0.1, prior=prior) for x, t in ((h, y), (again, copies))
    )
    assert torch.allclose(once["weight"], several["weight"], rtol=1e-9, atol=1e-10)


def test_class_means_are_the_posterior_of_a_gaussian():
    """r = σ²/τ²: with prior N(0, τ²) and n images of variance σ² the mean is n x̄ / (n + r)."""
    h, _, y = task(batch=1, shots=(3, 1), dim=2)
    sigma, tau = 0.6, 1.7
    head = heads.class_means(h, y, shrinkage=sigma**2 / tau**2, temperature=1 / sigma**2)
    for k, images in enumerate((h[0, :3], h[0, 3:])):
        precision = len(images) / sigma**2 + 1 / tau**2
        mean = images.sum(0) / sigma**2 / precision
        assert torch.allclose(head["weight"][0, :, k], mean / sigma**2, rtol=1e-12)
        assert float(head["bias"][0, 0, k]) == pytest.approx(float(-mean @ mean / 2 / sigma**2))


def test_without_shrinkage_the_nearest_class_mean_wins():
    h, _, y = task(shots=(4, 2, 3))
    query = normal(2, 20, 5, seed=4)
    means = torch.stack([h[:, :4].mean(1), h[:, 4:6].mean(1), h[:, 6:].mean(1)], dim=1)
    nearest = torch.cdist(query, means).argmin(-1)
    assert torch.equal(heads.logits(heads.class_means(h, y), query).argmax(-1), nearest)


def test_class_means_are_means_unless_told_otherwise():
    h, _, y = task(shots=(4, 2))
    weight = heads.class_means(h, y)["weight"]
    assert torch.allclose(weight[..., 0], h[:, :4].mean(1), rtol=1e-13)
    assert torch.allclose(weight[..., 1], h[:, 4:].mean(1), rtol=1e-13)


@pytest.mark.parametrize("shrinkage", [0.0, 1.0])
def test_a_class_without_images_is_the_origin(shrinkage):
    h, _, y = task(shots=(4, 2))
    more = torch.cat((y, torch.zeros_like(y[..., :1])), dim=-1)
    found = heads.class_means(h, more, shrinkage=shrinkage)
    expected = heads.class_means(h, y, shrinkage=shrinkage)
    for name in ("weight", "bias"):
        assert torch.equal(found[name][..., :2], expected[name])
        assert not found[name][..., 2].any()


def test_a_module_begins_with_its_documented_numbers_and_takes_the_features_precision():
    h, labels, _ = task()
    solver = filled(heads.HeadSolver(5))
    begun = (solver.log_shrinkage, solver.log_temperature, solver.log_decay)
    assert [number.detach().exp().item() for number in begun] == pytest.approx([1.0, 20.0, 0.03])
    found = solver.fit_labels(h, labels, 3)
    expected = solver.double().fit_labels(h, labels, 3)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_how_far_an_episode_is_from_the_features_of_training():
    """Of classes at 1 and 5 on one axis, whose mean is 3 from a running mean of 0."""
    solver = heads.HeadSolver(2).double()
    h = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 0.0]]], dtype=torch.float64)
    y = heads.one_hot(torch.tensor([[0, 0, 1]]), 2, h)
    expected = 2 * 3.0**2 / (2 * 2.0**2)  # N ‖x̄‖² / s², s² of N - 1 degrees of freedom
    assert solver.surprise(h, y).tolist() == pytest.approx([expected], rel=1e-12)
    more = torch.cat((y, torch.zeros_like(y[..., :1])), dim=-1)  # and a class without images
    assert solver.surprise(h, more).tolist() == pytest.approx([expected], rel=1e-12)


def test_the_centre_lies_between_the_running_mean_and_the_episode():
    h, labels, y = task(shots=(3, 1))
    solver = filled(heads.HeadSolver(5, shrinkage=2.0).double())
    shares = [3 / (3 + 2), 1 / (1 + 2)]
    episode = shares[0] * h[:, :3].mean(1) + shares[1] * h[:, 3:].mean(1)
    centre = ((10 * solver.running_mean + episode) / (10 + sum(shares)))[:, None]
    prior = heads.class_means(h - centre, y, shrinkage=2.0, temperature=20.0)
    expected = heads.solve(h - centre, y, decay=0.03, prior=prior)
    query = normal(2, 4, 5, seed=2)
    found = heads.logits(solver.fit_labels(h, labels, 2), query)
    assert torch.allclose(found, heads.logits(expected, query - centre), rtol=1e-6, atol=1e-6)


def test_the_running_mean_follows_episode_after_episode():
    solver = heads.HeadSolver(5).double()
    h = normal(3, 4, 5).requires_grad_()
    solver.track(h)
    expected = torch.zeros(5, dtype=torch.float64)
    for episode in h.detach():
        expected = 0.9 * expected + 0.1 * episode.mean(0)
    assert torch.allclose(solver.running_mean, expected, rtol=1e-12)
    assert not solver.running_mean.requires_grad


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_features_of_any_length_and_images_that_are_equal_are_solved(size):
    h, _, y = task(shots=(5, 5))
    h[:, 1] = h[:, 0]  # twice, and in both classes: only regularisation tells
    h[:, 6] = h[:, 0]
    head = heads.solve(size * h, y, decay=1e-3, prior=heads.class_means(size * h, y))
    assert head["weight"].isfinite().all()


def test_single_precision_stays_single_and_near_double():
    h, _, y = task()
    solver = heads.HeadSolver(5)
    single, double = solver.fit(h.float(), y.float()), solver.double().fit(h, y)
    assert {leaf.dtype for leaf in single.values()} == {torch.float32}
    assert torch.allclose(single["weight"].double(), double["weight"], rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_refused():
    h, _, y = task()
    h.requires_grad_()
    value = heads.solve(h, y, decay=0.1)["weight"].square().sum()
    with pytest.raises(NotImplementedError, match="solve"):
        torch.autograd.grad(value, h, create_graph=True)


def test_features_that_are_not_finite_are_refused():
    h, _, y = task()
    h[0, 0, 0] = torch.nan
    with pytest.raises(heads.HeadDivergenceError, match=r"\(2, 6, 5\) with decay 0\.1: look for"):
        heads.solve(h, y, decay=0.1)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decay": 0.0}, ValueError),
        ({"decay": float("nan")}, ValueError),
        ({"targets": torch.zeros(2, 5, 3, dtype=torch.float64)}, ValueError),
        ({"targets": torch.zeros(2, 6, 3)}, TypeError),
        ({"prior": {"weight": torch.zeros(2, 4, 3), "bias": torch.zeros(2, 1, 3)}}, ValueError),
    ],
)
def test_what_does_not_fit_is_refused(changes, error):
    h, _, y = task()
    with pytest.raises(error):
        heads.solve(**{"support": h, "targets": y, "decay": 0.1} | changes)


@pytest.mark.parametrize("options", [{"shrinkage": -1.0}, {"temperature": 0.0}])
def test_class_means_refuse_what_is_no_variance(options):
    h, _, y = task()
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        heads.class_means(h, y, **options)


@pytest.mark.parametrize("name", ["shrinkage", "temperature", "decay"])
def test_what_must_be_one_number_is_named(name):
    h, _, y = task()
    with pytest.raises(ValueError, match=f"^{name} must be a single number, found shape"):
        (heads.solve if name == "decay" else heads.class_means)(h, y, **{name: h[0, 0]})


MORE = [(1, 1, 1), (2, 1, 1), (10, 1, 1), (10, 2, 2), (10, 10, 10), (50, 10, 10)]


def test_more_pictures_never_hurt():
    """On the same Gaussian tasks, whichever class has them."""
    tasks, way, dim, most, query = 400, 3, 8, 50, 10
    centres, noise = normal(tasks, way, 1, dim), normal(tasks, way, most + query, dim, seed=1)
    images = centres + 1.5 * noise
    asked = images[:, :, most:].flatten(1, 2)
    truth = torch.arange(way).repeat_interleave(query).expand(tasks, -1)
    solver = heads.HeadSolver(dim, shrinkage=1.5**2, temperature=1.5**-2, decay=0.3).double()
    before = None
    for shots in MORE:
        support = torch.cat([images[:, c, :n] for c, n in enumerate(shots)], dim=1)
        labels = torch.arange(way).repeat_interleave(torch.tensor(shots)).expand(tasks, -1)
        with torch.no_grad():
            scores = heads.logits(solver.fit_labels(support, labels, way), asked)
        found = heads.accuracy(scores, truth)
        if before is not None:
            rise = found - before
            assert rise.mean() > -1.96 * rise.std() / tasks**0.5, shots
        before = found
    assert before.mean() > 0.75
