"""The hypergradient through the bridge is Algorithm 1's with the whole network inside λ."""

import math
import weakref

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from bilevel_apps.training.gradients import outer_steps
from bilevel_core import DivergenceError, GradientDescent, Problem, hypergradient
from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import EACH_SET, Encoder, Normalization, Statistics, create_model, heads

BATCH, WAY, SHOT, QUERY, SIZE = 2, 3, 2, 3, 8
MODES = list(Normalization)
LEARNED_STEP = GradientDescent(step_size=lambda lam, _t: lam["log_lr"].exp())


def make_episodes(seed=1):
    generator = torch.Generator().manual_seed(seed)

    def images(each):
        shape = (BATCH, WAY * each, 1, SIZE, SIZE)
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    def labels(each):
        return torch.arange(WAY).repeat_interleave(each).expand(BATCH, -1)

    return Episodes(
        support=images(SHOT),
        query=images(QUERY),
        support_labels=labels(SHOT),
        query_labels=labels(QUERY),
        way=WAY,
    )


def make_learner(mode, *, steps, unit_length, scale=3.0, **choices):
    torch.manual_seed(0)
    backbone = create_model("omniglot-net", channels=1, image_size=SIZE, filters=4)
    for norm in backbone.norms:  # zero offsets would hide a wrong one
        torch.nn.init.normal_(norm.bias, std=0.3)
    choices |= {"norm": mode, "unit_length": unit_length, "steps": steps}
    return HyperRepresentation(backbone, step_size=0.2, scale=scale, **choices).double()


def step_of(task, episodes, parts=1):
    """Put the gradient of a meta-batch into the `grad`; return the outer step that it is of."""
    (step,) = outer_steps(task, episodes, parts)
    return step


def gradients(task):
    return {name: p.grad for name, p in task.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        error = torch.linalg.vector_norm(found[name] - grad)
        assert error <= 1e-10 * torch.linalg.vector_norm(grad) + 1e-15, name


def reference(task, episodes):
    """f_T and ∇f_T by core's engine; each objective runs the network itself, on λ's weights."""
    mode, unit = task.normalization, task.unit_length
    n = WAY * SHOT

    def features(weights, images, statistics):
        h = functional_call(task.backbone, weights, (images, statistics))
        return functional.normalize(h, dim=-1) if unit else h

    def encode(weights):
        support, query = episodes.support, episodes.query
        if mode is Normalization.EPISODE:
            pairs = [
                (features(weights, s, EACH_SET), features(weights, q, EACH_SET))
                for s, q in zip(support, query, strict=True)
            ]
        elif mode is Normalization.BATCH:
            everything = torch.cat((support.flatten(0, 1), query.flatten(0, 1)))
            h = features(weights, everything, EACH_SET)
            h_s, h_q = h[: BATCH * n], h[BATCH * n :]
            return h_s.view(BATCH, n, -1), h_q.view(BATCH, WAY * QUERY, -1)
        else:
            statistics = Statistics(first=n) if mode is Normalization.SUPPORT else EACH_SET
            together = [
                features(weights, torch.cat(sets), statistics)
                for sets in zip(support, query, strict=True)
            ]
            pairs = [(h[:n], h[n:]) for h in together]
        h_s, h_q = zip(*pairs, strict=True)
        return torch.stack(h_s), torch.stack(h_q)

    def scores(w, lam, which):
        return heads.logits(w, encode(lam["backbone"])[which] * lam["log_scale"].exp())

    def outer(w, lam):
        z, labels = scores(w, lam, 1).flatten(0, 1), episodes.query_labels.flatten()
        return functional.cross_entropy(z, labels, label_smoothing=task.label_smoothing)

    problem = Problem(
        inner=lambda w, lam: heads.cross_entropy(scores(w, lam, 0), episodes.support_labels).sum(),
        outer=outer,
        init=lambda lam: {
            "weight": torch.zeros(BATCH, task.backbone.dim, WAY, dtype=torch.float64),
            "bias": torch.zeros(BATCH, 1, WAY, dtype=torch.float64),
        },
    )
    lam = {
        "backbone": {k: p.detach().clone() for k, p in task.backbone.named_parameters()},
        "log_lr": task.log_lr.detach().clone(),
        "log_scale": task.log_scale.detach().clone(),
    }
    computed = hypergradient(problem, LEARNED_STEP, lam, steps=task.steps)
    grads = {f"backbone.{k}": g for k, g in computed.grad["backbone"].items()}
    return computed.value, grads | {k: computed.grad[k] for k in ("log_lr", "log_scale")}


@pytest.mark.parametrize("unit_length", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_engine_with_the_network_inside(mode, steps, unit_length):
    task, episodes = make_learner(mode, steps=steps, unit_length=unit_length), make_episodes()
    value, expected = reference(task, episodes)
    outcome = step_of(task, episodes)
    assert outcome.loss == pytest.approx(float(value), rel=1e-12)
    assert_equal(gradients(task), expected)
    norm = torch.linalg.vector_norm(expected["backbone.convolutions.0.weight"])
    assert (norm > 1e-3) == (steps > 0)  # a head that stays zero teaches the network nothing


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_smoothed_labels_are_in_the_outer_loss_alone(smoothing):
    episodes = make_episodes()
    task = make_learner(Normalization.GHOST, steps=5, unit_length=True, label_smoothing=smoothing)
    value, expected = reference(task, episodes)
    outcome = step_of(task, episodes)
    assert outcome.loss == pytest.approx(float(value), rel=1e-12)
    assert_equal(gradients(task), expected)
    task.label_smoothing = 0.0
    plain = step_of(task, episodes)
    assert outcome.loss != pytest.approx(plain.loss, rel=1e-3)
    assert outcome.accuracy == plain.accuracy  # the heads are the same


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("mode", [m for m in MODES if m is not Normalization.BATCH])
def test_in_parts_it_is_the_same_hypergradient(mode, parts):
    """Also the running averages, which follow episode by episode."""
    pair = make_episodes(), make_episodes(seed=2)
    episodes = Episodes(
        way=WAY,
        **{
            name: torch.cat([getattr(half, name) for half in pair])
            for name in ("support", "query", "support_labels", "query_labels")
        },
    )
    whole = make_learner(mode, steps=3, unit_length=True, label_smoothing=0.1)
    divided = make_learner(mode, steps=3, unit_length=True, label_smoothing=0.1)
    outcomes = step_of(whole, episodes), step_of(divided, episodes, parts)
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-12)
    assert outcomes[0].accuracy == pytest.approx(outcomes[1].accuracy, rel=1e-12)
    assert_equal(gradients(divided), gradients(whole))
    assert_equal(dict(divided.named_buffers()), dict(whole.named_buffers()))


def test_one_part_is_in_memory_at_a_time(monkeypatch):
    sizes, graphs = [], []
    whole = Encoder.__call__

    def encode(encoder, support, query, *, training):
        sizes.append(len(support))
        assert not any(graph() is not None for graph in graphs)  # the part before has been freed
        found = whole(encoder, support, query, training=training)
        graphs.extend(weakref.ref(features) for features in found)
        return found

    monkeypatch.setattr(Encoder, "__call__", encode)
    step_of(make_learner(Normalization.GHOST, steps=2, unit_length=True), make_episodes(), parts=2)
    assert sizes == [1, 1]


def test_parts_of_a_meta_batch_are_equal():
    with pytest.raises(ValueError, match="2 episodes do not divide into 3 equal parts"):
        list(make_episodes().parts(3))


def test_divergence_is_one_error():
    task, episodes = make_learner(Normalization.GHOST, steps=3, unit_length=False), make_episodes()
    with torch.no_grad():
        task.log_lr.fill_(800.0)
    with pytest.raises(DivergenceError, match="lower the"):
        step_of(task, episodes)
    with pytest.raises(DivergenceError, match="lower the"):
        task.accuracies(episodes)


def test_a_loss_that_is_no_number_is_refused():
    task, episodes = (
        make_learner(Normalization.SUPPORT, steps=1, unit_length=False),
        make_episodes(),
    )
    episodes.query[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=r"the loss on the query images is nan.* T = 1"):
        step_of(task, episodes)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", ["log_lr", "log_scale"])
def test_step_size_and_scale_by_finite_differences(name, steps):
    episodes = make_episodes()

    def loss(offset):
        task = make_learner(Normalization.SUPPORT, steps=steps, unit_length=True)
        with torch.no_grad():
            getattr(task, name).add_(offset)
        return step_of(task, episodes).loss, float(getattr(task, name).grad)

    h = 1e-5
    difference = (loss(h)[0] - loss(-h)[0]) / (2 * h)
    assert abs(difference) > 1e-3
    assert loss(0.0)[1] == pytest.approx(difference, rel=1e-7)


def test_what_is_not_learned_gets_no_gradient():
    task = make_learner(Normalization.SUPPORT, steps=2, unit_length=True)
    task.log_lr.requires_grad_(False)
    step_of(task, make_episodes())
    assert task.log_lr.grad is None
    assert task.log_scale.grad is not None


def test_gradients_do_not_add_up_over_hyper_iterations():
    task, episodes = make_learner(Normalization.SUPPORT, steps=2, unit_length=True), make_episodes()
    step_of(task, episodes)
    once = {k: p.grad.clone() for k, p in task.named_parameters()}
    step_of(task, episodes)
    assert all(torch.equal(p.grad, once[k]) for k, p in task.named_parameters())


@pytest.mark.parametrize("mode", MODES)
def test_accuracy_is_that_of_the_trained_heads(mode):
    """With training's statistics; the modes that keep running averages have others in test."""
    task, episodes = make_learner(mode, steps=5, unit_length=True, scale=10.0), make_episodes()
    trained = step_of(task, episodes).accuracy
    scored = task.accuracies(episodes)
    assert scored.shape == (BATCH,)
    assert all(math.isclose(a * 9, round(a * 9), abs_tol=1e-9) for a in scored.tolist())
    if mode in (Normalization.EPISODE, Normalization.SUPPORT):
        assert float(scored.mean()) == pytest.approx(trained, abs=1e-12)
