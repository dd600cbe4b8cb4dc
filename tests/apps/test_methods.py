"""The rows of Table 4: each gradient against autograd by hand, and a training of each."""

import copy
import importlib
import itertools
import json
import pickle
import sys
import threading
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call
from torch.nn import functional

from apps.conftest import Killed
from bilevel_apps.config import (
    Config,
    describe_keys,
    list_presets,
    load_preset,
    parse_config,
    with_settings,
)
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.runs.build import make_learner, settled_outputs
from bilevel_apps.runs.checkpoint import load_checkpoint, save_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.load import load_run
from bilevel_apps.system.processes import ALONE
from bilevel_apps.training import loop as train_module
from bilevel_apps.training.data_parallel import shared_gradients
from bilevel_apps.training.gradients import outer_steps
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare, resolve
from bilevel_core import Direct, DivergenceError, GradientDescent, Problem, Reverse, hypergradient
from bilevel_data import (
    EpisodeSampler,
    EpisodeSpec,
    SourceData,
    SourceSplit,
    open_store,
    write_store,
)
from bilevel_meta.episodes import Episodes, to_device
from bilevel_meta.methods.variants import VARIANTS
from bilevel_meta.registry import LEARNERS
from bilevel_models import EACH_SET, Normalization, Statistics, create_model, heads
from bilevel_models.backbones.linear_output import (
    LinearOutputs,
    LinearOutputsOfSets,
    with_linear_outputs,
)

CPU = torch.device("cpu")
# Those of a representation, which go with every one of its methods.
PRESETS = [n for n in list_presets() if "method" not in load_preset(n) and n != "features"]
WAY, SHOT, QUERY, SIZE, CLASSES = 3, 2, 3, 8, 7
SUPPORT_SET, TOGETHER = WAY * SHOT, WAY * (SHOT + QUERY)
MODES = list(Normalization)
LEARNED_STEP = GradientDescent(step_size=lambda lam, _t: lam["log_lr"].exp())
OWN = (Normalization.EPISODE, Normalization.SUPPORT)
# Whether D_val is D_tr, and whether the gradient goes through the inner steps.
BILEVEL = {
    "hyper-representation": (False, True),
    "bilevel-train": (True, True),
    "approx": (False, False),
    "approx-train": (True, False),
}


def make_episodes(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def images(each):
        shape = (batch, WAY * each, 1, SIZE, SIZE)
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    def labels(each):
        return torch.arange(WAY).repeat_interleave(each).expand(batch, -1)

    classes = [torch.randperm(CLASSES, generator=generator)[:WAY] for _ in range(batch)]
    return Episodes(
        support=images(SHOT),
        query=images(QUERY),
        support_labels=labels(SHOT),
        query_labels=labels(QUERY),
        way=WAY,
        classes=torch.stack(classes),
    )


def make_small_task(mode, *, name="hyper-representation", steps=3, outputs=None, **choices):
    torch.manual_seed(0)
    backbone = create_model("omniglot-net", channels=1, image_size=SIZE, filters=4)
    for norm in backbone.norms:  # zero offsets would hide a wrong one
        torch.nn.init.normal_(norm.bias, std=0.3)
    if outputs is not None:
        backbone = with_linear_outputs(backbone, outputs)
        torch.nn.init.normal_(backbone.linear.bias)
    choices |= {"norm": mode, "steps": steps, "step_size": 0.2, "scale": 3.0}
    return VARIANTS[name](backbone, **choices).double()


def task_for(name, mode, **choices):
    outputs = CLASSES if name == "multiclass" else None
    return make_small_task(mode, name=name, outputs=outputs, **choices)


def gradients(task):
    return {k: p.grad for k, p in task.named_parameters() if p.grad is not None}


def only(task, episodes):
    """Return what a method yields that takes one outer step."""
    (outcome,) = outer_steps(task, episodes)
    return outcome


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        error = torch.linalg.vector_norm(found[name] - grad)
        assert error <= 1e-10 * torch.linalg.vector_norm(grad) + 1e-14, name


def leaves_of(task):
    """Return λ as leaves of their own, by the model's names."""
    named = task.named_parameters()
    return {name: p.detach().clone().requires_grad_() for name, p in named}


def features(task, lam, images, statistics, *, unit_length):
    own = {k.removeprefix("backbone."): v for k, v in lam.items() if k.startswith("backbone.")}
    h = functional_call(task.backbone, own, (images, statistics))
    return functional.normalize(h, dim=-1) if unit_length else h


def encode(task, lam, episodes, *, unit_length=None):
    """Return features of support and query, or of the union twice, one plain pass after another."""
    mode = task.normalization
    unit = task.unit_length if unit_length is None else unit_length
    united = episodes.support is episodes.query
    if united and mode is Normalization.BATCH:
        h = features(task, lam, episodes.support.flatten(0, 1), EACH_SET, unit_length=unit)
        return (h.view(*episodes.support.shape[:2], -1),) * 2
    if united:
        h = [features(task, lam, x, EACH_SET, unit_length=unit) for x in episodes.support]
        return (torch.stack(h),) * 2
    if mode is Normalization.BATCH:
        batch, n, m = len(episodes.support), SUPPORT_SET, WAY * QUERY
        images = torch.cat((episodes.support.flatten(0, 1), episodes.query.flatten(0, 1)))
        h = features(task, lam, images, EACH_SET, unit_length=unit)
        return h[: batch * n].view(batch, n, -1), h[batch * n :].view(batch, m, -1)
    pairs = []
    for s, q in zip(episodes.support, episodes.query, strict=True):
        if mode is Normalization.EPISODE:
            pair = [features(task, lam, x, EACH_SET, unit_length=unit) for x in (s, q)]
        else:
            first = Statistics(first=len(s)) if mode is Normalization.SUPPORT else EACH_SET
            h = features(task, lam, torch.cat((s, q)), first, unit_length=unit)
            pair = [h[: len(s)], h[len(s) :]]
        pairs.append(pair)
    return tuple(torch.stack(h) for h in zip(*pairs, strict=True))


def loss_of(scores, labels, smoothing):
    return functional.cross_entropy(
        scores.flatten(0, 1), labels.flatten(), label_smoothing=smoothing
    )


def by_hand(task, episodes, *, through):
    """E and its gradient by one graph over the network and all T steps."""
    lam = leaves_of(task)
    h_s, h_q = encode(task, lam, episodes)
    eta, s = lam["log_lr"].exp(), lam["log_scale"].exp()
    weight = torch.zeros(len(h_s), h_s.shape[2], WAY, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(h_s), 1, WAY, dtype=torch.float64, requires_grad=True)
    for _ in range(task.steps):
        each = [
            loss_of(z[None], y[None], 0.0)
            for z, y in zip(s * h_s @ weight + bias, episodes.support_labels, strict=True)
        ]
        g_weight, g_bias = torch.autograd.grad(sum(each), (weight, bias), create_graph=True)
        weight, bias = weight - eta * g_weight, bias - eta * g_bias
    if not through:
        weight, bias = weight.detach(), bias.detach()
    scores = s * h_q @ weight + bias
    value = loss_of(scores, episodes.query_labels, task.label_smoothing)
    grads = torch.autograd.grad(value, list(lam.values()), materialize_grads=True)
    right = (scores.argmax(-1) == episodes.query_labels).double().mean()
    return float(value.detach()), float(right), dict(zip(lam, grads, strict=True))


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BILEVEL)
def test_bilevel_and_approximate_gradients_by_hand(name, mode, steps):
    united, through = BILEVEL[name]
    task, episodes = task_for(name, mode, steps=steps, label_smoothing=0.1), make_episodes()
    seen = episodes.united() if united else episodes
    loss, accuracy, expected = by_hand(task, seen, through=through)
    outcome = only(task, episodes)
    assert outcome.loss == pytest.approx(loss, rel=1e-12)
    assert outcome.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert_equal(gradients(task), expected)
    learned = torch.linalg.vector_norm(expected["backbone.convolutions.0.weight"])
    assert (learned > 1e-3) == (steps > 0)
    assert (expected["log_lr"] != 0) == (through and steps > 0)


@pytest.mark.parametrize("name", BILEVEL)
def test_bilevel_and_approximate_gradients_by_cores_engines(name):
    """Bilevel-train is Reverse on the union, Approx is Direct; the whole network is in λ."""
    united, through = BILEVEL[name]
    task, episodes = task_for(name, Normalization.GHOST, steps=4), make_episodes()
    seen = episodes.united() if united else episodes
    lam = {k: v.detach() for k, v in leaves_of(task).items()}

    def scores(w, lam, which):
        return heads.logits(w, encode(task, lam, seen)[which] * lam["log_scale"].exp())

    problem = Problem(
        inner=lambda w, lam: heads.cross_entropy(scores(w, lam, 0), seen.support_labels).sum(),
        outer=lambda w, lam: heads.cross_entropy(scores(w, lam, 1), seen.query_labels).mean(),
        init=lambda lam: heads.zeros(torch.zeros(2, 1, task.backbone.dim).double(), WAY),
    )
    engine = Reverse() if through else Direct()
    expected = hypergradient(problem, LEARNED_STEP, lam, steps=4, engine=engine)
    assert only(task, episodes).loss == pytest.approx(float(expected.value), rel=1e-12)
    assert_equal(gradients(task), expected.grad)


def test_the_four_gradients_differ():
    """Otherwise the comparison of the paper would be one of a thing with itself."""
    episodes, found = make_episodes(), {}
    for name in BILEVEL:
        task = task_for(name, Normalization.GHOST, steps=5)
        only(task, episodes)
        found[name] = torch.cat([g.flatten() for g in gradients(task).values()])
    for a, b in itertools.combinations(found, 2):
        apart = torch.linalg.vector_norm(found[a] - found[b])
        assert apart > 0.05 * torch.linalg.vector_norm(found[a]), (a, b)


def joint_descent(task, episodes, rate):
    """λ and all heads by plain gradient descent on one loss; return losses, gradients and λ."""
    lam, seen = leaves_of(task), episodes.united()
    dim, batch = task.backbone.dim, len(episodes.support)
    weight = torch.zeros(batch, dim, WAY, dtype=torch.float64)
    bias = torch.zeros(batch, 1, WAY, dtype=torch.float64)
    losses, seen_grads = [], []
    for _ in range(task.steps):
        weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        h, _ = encode(task, lam, seen)
        scores = lam["log_scale"].exp() * h @ weight + bias
        value = loss_of(scores, seen.support_labels, task.label_smoothing)
        learned = [name for name in lam if name != "log_lr"]
        wanted = [weight, bias, *(lam[name] for name in learned)]
        g_weight, g_bias, *grads = torch.autograd.grad(value, wanted)
        eta = float(lam["log_lr"].detach().exp())
        weight, bias = weight - batch * eta * g_weight, bias - batch * eta * g_bias
        seen_grads.append(dict(zip(learned, grads, strict=True)))
        losses.append(float(value.detach()))
        for name, grad in seen_grads[-1].items():
            lam[name] = (lam[name] - rate * grad).detach().requires_grad_()
    return losses, seen_grads, lam


def descend_along(task, steps, rate):
    """Take a plain step along each gradient that comes; return what it told."""
    found = []
    for outcome in steps:
        found.append((outcome, {k: g.clone() for k, g in gradients(task).items()}))
        with torch.no_grad():
            for parameter in task.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_classic_trains_representation_and_heads_together(mode, batch, smoothing):
    episodes = make_episodes(batch)
    task = task_for("classic-train", mode, steps=5, label_smoothing=smoothing)
    losses, expected, lam = joint_descent(task, episodes, rate=0.5)
    found = descend_along(task, outer_steps(task, episodes), rate=0.5)
    assert len(found) == 5
    assert [outcome.loss for outcome, _ in found] == pytest.approx(losses, rel=1e-12)
    for (_, grads), grad in zip(found, expected, strict=True):
        assert_equal(grads, grad)
    assert_equal(dict(task.named_parameters()), lam)
    assert all(float(g.abs().max()) < 1e-15 for g in found[0][1].values())  # heads of zero
    assert float(found[1][1]["backbone.convolutions.0.weight"].abs().max()) > 1e-4
    assert losses[-1] < losses[0]


def test_classic_begins_each_meta_batch_with_new_heads():
    """What it does is a function of the weights and the meta-batch, as a resume needs."""
    episodes = make_episodes()
    task = task_for("classic-train", Normalization.SUPPORT, steps=3)
    first, second = ([o.loss for o in outer_steps(task, episodes)] for _ in range(2))
    assert first == second
    assert first[0] == pytest.approx(np.log(WAY), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_multiclass_is_a_linear_layer_and_cross_entropy(mode, batch, smoothing):
    task = task_for("multiclass", mode, label_smoothing=smoothing)
    bare, episodes = make_small_task(mode), make_episodes(batch)
    lam, seen = leaves_of(task), episodes.united()
    inside = "backbone.network."
    network = {k.replace(inside, "backbone."): v for k, v in lam.items() if k.startswith(inside)}
    g, _ = encode(bare, network, seen, unit_length=False)
    layer = torch.nn.Linear(bare.backbone.dim, CLASSES).double()
    for name in ("weight", "bias"):
        getattr(layer, name).data.copy_(lam[f"backbone.linear.{name}"].detach())
    own = torch.stack([c[y] for c, y in zip(seen.classes, seen.support_labels, strict=True)])
    scores = layer(g).flatten(0, 1)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    value = criterion(scores, own.flatten())
    value.backward()
    outcome = only(task, episodes)
    assert outcome.loss == pytest.approx(float(value.detach()), rel=1e-12)
    right = (scores.argmax(-1) == own.flatten()).double().mean()
    assert outcome.accuracy == pytest.approx(float(right), rel=1e-12)
    expected = {k: v.grad for k, v in lam.items() if v.grad is not None}
    expected |= {f"backbone.linear.{k}": p.grad for k, p in layer.named_parameters()}
    assert_equal(gradients(task), expected)


def test_multiclass_asks_for_classes():
    task = task_for("multiclass", Normalization.GHOST)
    with pytest.raises(ValueError, match="do not say which classes they have"):
        only(task, replace(make_episodes(), classes=None))


class SetBySet(torch.nn.Module):
    """A network without its `forward_sets`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, statistics):
        return self.network(images, statistics)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "set by set"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_set_is_encoded_once(mode, batch, at_once, monkeypatch):
    """Features and their gradient are those of plain passes, and no image goes twice.

    Set by set is how a GPU does it, and a network that cannot otherwise.
    """
    task, episodes = make_small_task(mode), make_episodes(batch).united()
    if not at_once:
        task.backbone = SetBySet(task.backbone)
    lam, counted = leaves_of(task), []
    network, way_in = type(task.backbone), "forward_sets" if at_once else "forward"
    whole = getattr(network, way_in)

    def count(backbone, images, *how, **options):
        counted.append(len(images))
        return whole(backbone, images, *how, **options)

    expected, _ = encode(task, lam, episodes)
    monkeypatch.setattr(network, way_in, count)
    (found,) = task.encoder(episodes.support, training=True)
    assert sum(counted) == TOGETHER * batch
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    direction = torch.randn(found.shape, dtype=torch.float64)
    learned = [name for name in lam if name.startswith("backbone.")]
    grads = torch.autograd.grad((expected * direction).sum(), [lam[name] for name in learned])
    (found * direction).sum().backward()
    assert_equal(gradients(task), dict(zip(learned, grads, strict=True)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VARIANTS)
def test_running_averages_follow_where_they_are_used(name, mode):
    task, episodes = task_for(name, mode), make_episodes(3)
    before = {k: v.clone() for k, v in task.named_buffers()}
    for _ in outer_steps(task, episodes):
        pass
    moved = {not torch.equal(v, before[k]) for k, v in task.named_buffers()}
    assert moved == {mode not in OWN}
    expected = make_small_task(mode)
    passes = task.steps if name == "classic-train" else 1
    for _ in range(passes):  # support and query share statistics where they are tracked at all
        expected.encoder(episodes.support, episodes.query, training=True)
    for key, value in expected.named_buffers():
        inside = key.replace("backbone.", "backbone.network.") if name == "multiclass" else key
        found = task.get_buffer(inside)
        assert torch.allclose(found, value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", [m for m in MODES if m is not Normalization.BATCH])
@pytest.mark.parametrize("name", VARIANTS)
def test_in_parts_it_is_the_same(name, mode):
    episodes, found = make_episodes(4), []
    for parts in (1, 2, 4):
        task = task_for(name, mode, label_smoothing=0.1)
        found.append((task, descend_along(task, outer_steps(task, episodes, parts), rate=0.3)))
    (whole, steps), *others = found
    for divided, told in others:
        for (a, g), (b, h) in zip(steps, told, strict=True):
            assert b.loss == pytest.approx(a.loss, rel=1e-12)
            assert b.accuracy == pytest.approx(a.accuracy, rel=1e-12)
            assert_equal(h, g)
        assert_equal(divided.state_dict(), whole.state_dict())


class Pair:
    """Two processes that are threads, as far as a hyper-iteration needs one."""

    def __init__(self, rank, parts, barrier):
        self.rank, self.size, self.parts, self.barrier, self.sums = rank, 2, parts, barrier, 0

    def add(self, values):
        self.sums += 1
        self.parts[self.rank] = values.clone()
        self.barrier.wait()
        values.copy_(self.parts[0] + self.parts[1])
        self.barrier.wait()


@pytest.mark.parametrize("mode", [m for m in MODES if m is not Normalization.BATCH])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_come_to_what_one_comes_to(name, mode):
    episodes = make_episodes(4)
    whole = task_for(name, mode, label_smoothing=0.1)
    expected = descend_along(whole, outer_steps(whole, episodes), rate=0.3)
    copies, told, parts = (
        [copy.deepcopy(task_for(name, mode, label_smoothing=0.1)) for _ in "ab"],
        {},
        {},
    )
    barrier, shares = threading.Barrier(2, timeout=60), list(episodes.parts(2))

    def work(rank):
        process, mine = Pair(rank, parts, barrier), copies[rank]

        def shared(part):
            own = outer_steps(mine, part)
            for outcome in shared_gradients(own, mine, part, process, stop=rank == 1):
                assert outcome.stop is True
                yield outcome

        told[rank] = descend_along(mine, shared(shares[rank]), rate=0.3), process.sums

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, mine in enumerate(copies):
        found, sums = told[rank]
        assert sums == len(expected) == (whole.steps if name == "classic-train" else 1)
        for (a, g), (b, h) in zip(expected, found, strict=True):
            assert b.loss == pytest.approx(a.loss, rel=1e-12)
            assert_equal(h, g)
        assert_equal(mine.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", VARIANTS)
def test_alone_the_method_is_left_as_it_is(name):
    task, other, episodes = *(task_for(name, Normalization.GHOST) for _ in "ab"), make_episodes()
    steps = outer_steps(task, episodes)
    found = list(shared_gradients(steps, task, episodes, ALONE, stop=True))
    assert found == [replace(outcome, stop=True) for outcome in outer_steps(other, episodes)]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_method_does_not_use_of_the_scalars_stays(name):
    """To the bit, also under an optimiser that divides by the gradient's size."""
    task, episodes = task_for(name, Normalization.GHOST), make_episodes()
    start = {k: v.detach().clone() for k, v in task.named_parameters()}
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for _ in outer_steps(task, episodes):
            optimizer.step()
    moved = {k for k, v in task.named_parameters() if not torch.equal(v, start[k])}
    assert "backbone.norms.0.bias" in moved or name == "multiclass"
    assert ("log_lr" in moved) == (name in ("hyper-representation", "bilevel-train"))
    assert ("log_scale" in moved) == (name != "multiclass")


@pytest.mark.parametrize("name", VARIANTS)
def test_scalars_that_are_not_learned_get_no_gradient(name):
    task = task_for(name, Normalization.SUPPORT)
    task.log_lr.requires_grad_(False)
    task.log_scale.requires_grad_(False)
    for _ in outer_steps(task, make_episodes()):
        assert not {"log_lr", "log_scale"} & gradients(task).keys()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "multiclass"])
def test_divergence_is_one_error(name):
    task = task_for(name, Normalization.GHOST, unit_length=False)
    with torch.no_grad():
        task.log_lr.fill_(800.0)
    with pytest.raises(DivergenceError, match="lower the"):
        list(outer_steps(task, make_episodes()))


def test_linear_outputs_are_the_representation():
    """Of unit length where features are, whatever the training took."""
    episodes = make_episodes()
    for unit in (False, True):
        task = task_for("multiclass", Normalization.SUPPORT, unit_length=unit)
        inside, layer = task.backbone.network, task.backbone.linear
        first = Statistics(first=SUPPORT_SET)
        both = [
            layer(inside(torch.cat((s, q)), first))
            for s, q in zip(episodes.support, episodes.query, strict=True)
        ]
        expected = torch.stack(both).detach()
        expected = functional.normalize(expected, dim=-1) if unit else expected
        with torch.no_grad():
            support, query = task.encoder(episodes.support, episodes.query, training=False)
        together = torch.cat((support, query), dim=1)
        assert together.shape[-1] == task.backbone.dim == CLASSES
        assert torch.allclose(together, expected, rtol=1e-12, atol=1e-14)
        head = heads.descend(
            support,
            heads.one_hot(episodes.support_labels, WAY, support),
            steps=task.steps,
            step_size=0.2,
            scale=3.0,
        )
        scores = heads.logits(head, query)
        assert torch.equal(task.accuracies(episodes), heads.accuracy(scores, episodes.query_labels))


def test_linear_outputs_pass_sets_at_once_where_the_network_does():
    network = create_model("omniglot-net", channels=1, image_size=SIZE, filters=4)
    model = with_linear_outputs(network, 5)
    assert isinstance(model, LinearOutputsOfSets)
    images, sizes = torch.rand(7, 1, SIZE, SIZE), (3, 4)
    found = model.forward_sets(images, sizes, track=False)
    expected = torch.cat([model(x, EACH_SET) for x in images.split(sizes)])
    assert torch.allclose(found, expected, atol=1e-5)
    resnet = create_model("resnet12", channels=1, image_size=16, filters=4)
    assert type(with_linear_outputs(resnet, 5)) is LinearOutputs


def test_linear_outputs_are_not_rounded_with_the_convolutions():
    network = create_model("omniglot-net", channels=1, image_size=SIZE, filters=4)
    model, images = with_linear_outputs(network, 5), torch.rand(4, 1, SIZE, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g, h = network(images), model(images)
    assert (g.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(h, model.linear(g.float()))


def test_batches_say_which_classes_they_have(store):
    split = open_store(store).load("train")
    means = split.images.reshape(12, 20, 16, 16, 1)
    for rotations in (False, True):
        spec = EpisodeSpec(way=5, shot=1, query=2)
        sampler = EpisodeSampler(split, spec, seed=3, rotations=rotations)
        batch = sampler.batch(0, 4)
        assert batch.classes.shape == (4, 5)
        assert batch.classes.max() < sampler.num_classes
        for i in range(4):
            assert len(set(batch.classes[i])) == 5
            classes, turns = (
                np.divmod(batch.classes[i], 4) if rotations else (batch.classes[i], [0] * 5)
            )
            indices = sampler.indices(i)
            assert np.array_equal(classes, indices.classes)
            assert np.array_equal(turns, indices.rotations)
            for n in range(5):
                own = np.rot90(means[classes[n]], turns[n], axes=(1, 2))
                assert any(np.array_equal(batch.support[i, n], image) for image in own)
        assert torch.equal(to_device(batch, 5, CPU).classes, torch.from_numpy(batch.classes))
        parts = [part.classes for part in to_device(batch, 5, CPU).parts(2)]
        assert torch.equal(torch.cat(parts), torch.from_numpy(batch.classes))


def test_united_episodes_are_support_and_query_at_once():
    episodes = make_episodes()
    united = episodes.united()
    assert united.support is united.query
    assert torch.equal(united.support, torch.cat((episodes.support, episodes.query), dim=1))
    labels = torch.cat((episodes.support_labels, episodes.query_labels), dim=1)
    assert torch.equal(united.support_labels, labels)
    assert torch.equal(united.query_labels, labels)
    assert united.support.shape[1] == TOGETHER


def test_methods_are_those_of_the_configuration():
    """Under the names of Table 4, in its order but for our own, which is the default."""
    known = get_args(Config.model_fields["method"].annotation)
    assert set(known) == {*VARIANTS, *LEARNERS}
    assert Config().method == "hyper-representation"
    described = describe_keys()["method"]
    assert all(name in described for name in VARIANTS)
    with pytest.raises(InputError, match="--set: method: input should be 'hyper-representation', "):
        parse_config(with_settings({}, ["method=approximate"]), "--set")


def test_what_a_method_cannot_do_is_refused_before_anything_is_written(tmp_path, config):
    for changes, says in [
        ({"method": "classic-train", "inner__steps": 0}, "inner.steps=0: method=classic-train "),
        ({"method": "multiclass", "model__outputs": 5}, "model.outputs=5: .* each of the 12 class"),
    ]:
        with pytest.raises(InputError, match=says) as refusal:
            train(config(**changes), tmp_path / "run", resume=False)
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "run").exists()


def test_one_output_for_each_training_class(config):
    many = config(method="multiclass")
    assert settled_outputs(many, 48) == 48
    assert settled_outputs(config(method="multiclass", model__outputs=48), 48) == 48
    assert settled_outputs(config(), 48) is None
    assert settled_outputs(config(model__outputs=3), 48) == 3  # a choice like that of filters
    task = make_learner(config(model__outputs=3), (16, 16, 1), CPU)
    assert task.backbone.dim == 3


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Stores that every preset's episodes fit: grey drawings that turn, and coloured pictures."""
    made = {}
    for name, shape, classes, images, turned in (
        ("omniglot", (28, 28, 1), 15, 20, True),
        ("mini-imagenet", (84, 84, 3), 20, 20, False),
    ):
        random = np.random.default_rng(0)
        splits = tuple(
            SourceSplit(
                name=split,
                class_names=tuple(f"{split}-{c}" for c in range(count)),
                class_sizes=(images,) * count,
                image_shape=shape,
                images=[
                    random.integers(0, 256, (images, *shape), dtype=np.uint8) for _ in range(count)
                ],
            )
            for split, count in (("train", classes), ("val", 5))
        )
        path = tmp_path_factory.mktemp("wide") / f"{name}.h5"
        source = SourceData(
            name=name,
            licence="CC0",
            source="made by a test",
            preprocessing="none",
            rotations_are_classes=turned,
            splits=splits,
        )
        write_store(path, source)
        made[name] = path
    return made


# Every preset by one method, and every method by one preset of each data set.
PREPARED = [
    *((preset, "hyper-representation") for preset in PRESETS),
    *itertools.product(("omniglot-20way-1shot", "mini-imagenet-c4l-5way-1shot"), VARIANTS),
]


@pytest.mark.parametrize(("preset", "name"), dict.fromkeys(PREPARED))
def test_every_preset_can_be_trained_and_every_method_trains(preset, name, wide, tmp_path):
    store = wide["mini-imagenet" if "mini-imagenet" in preset else "omniglot"]
    # Classic training has no heads at their optimum, which the presets ask for.
    changes = [f"method={name}", "threads=1", *["inner.steps=5"] * (name == "classic-train")]
    settings = with_settings(load_preset(preset), changes)
    config = parse_config(settings | {"data": str(store)}, preset)
    opened = open_store(store)
    config = resolve(config, opened, CPU, ALONE)
    training = prepare(config, RunFolder(tmp_path / "run"), opened, CPU, ALONE)
    assert isinstance(training.learner, getattr(VARIANTS[name], "func", VARIANTS[name]))
    if name in BILEVEL:
        assert (training.learner.united, training.learner.through) == BILEVEL[name]
    outputs = {"omniglot": 60, "mini-imagenet": 20}[store.stem]
    assert (training.learner.backbone.dim == outputs) == (name == "multiclass")
    assert config.model.outputs == (outputs if name == "multiclass" else None)
    assert parse_config(config.model_dump(mode="json"), "saved") == config
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupt a training in the middle of hyper-iteration `step + 1`, between its outer steps."""
    whole = train_module.clipped_norm
    steps = []

    def install(count):
        def cut(*arguments):
            steps.append(None)
            if len(steps) == count:
                raise Killed
            return whole(*arguments)

        steps.clear()
        monkeypatch.setattr(train_module, "clipped_norm", cut)

    return install


EVERYTHING = {
    "model__filters": 8,
    "train__steps": 6,
    "train__meta_batch": 4,
    "train__schedule": "cosine",
    "train__accumulate": 2,
    "train__clip": 0.1,
    "train__average": 0.8,
    "train__label_smoothing": 0.1,
    "train__augment": ["shift", "flip"],
    "tracking__every": 3,
}


@pytest.mark.parametrize("norm", ["ghost", "episode"])
@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_to_the_bit(name, norm, tmp_path, config, stop_after):
    chosen = config(**EVERYTHING, method=name, model__norm=norm)
    train(chosen, tmp_path / "whole", resume=False)
    outer_steps = 5 if name == "classic-train" else 1
    for count in (2 * outer_steps + 1, 2 * outer_steps + (outer_steps + 1) // 2):
        stop_after(count)
        with pytest.raises(Killed):
            train(chosen, tmp_path / "cut", resume=True)
    stop_after(None)
    train(RunFolder(tmp_path / "cut").load_config(), tmp_path / "cut", resume=True)
    for file in ("last.safetensors", "best.safetensors"):
        whole, cut = (tmp_path / folder / file for folder in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config):
    """A short run of every method."""
    folders = {}
    for name in VARIANTS:
        folders[name] = tmp_path_factory.mktemp("methods") / name
        train(config(method=name, train__average=0.5), folders[name], resume=False)
    return folders


def test_methods_come_to_other_weights(runs, config):
    found = {
        name: load_checkpoint(folder / "last.safetensors").tensors for name, folder in runs.items()
    }
    network = {
        name: tensors["model.backbone.network.convolutions.0.weight"]
        if name == "multiclass"
        else tensors["model.backbone.convolutions.0.weight"]
        for name, tensors in found.items()
    }
    for a, b in itertools.combinations(network, 2):
        assert not torch.allclose(network[a], network[b], rtol=1e-3), (a, b)
    for name, tensors in found.items():
        learned = name in ("hyper-representation", "bilevel-train")
        assert (float(tensors["model.log_lr"].exp()) != pytest.approx(0.1)) == learned
    saved = RunFolder(runs["multiclass"]).load_config()
    assert (saved.method, saved.model.outputs) == ("multiclass", 12)
    assert found["multiclass"]["model.backbone.linear.weight"].shape == (12, 4)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process; returns what it printed."""

    def run(name, *arguments):
        main = importlib.import_module(f"bilevel_apps.cli.{name}").main
        monkeypatch.setattr(sys, "argv", [f"bilevel-{name}", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return printed.out

    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_of_any_method_is_evaluated_looked_at_and_used(name, runs, command, tmp_path, store):
    folder = runs[name]
    report = json.loads(
        command("evaluate", folder, "--split", "val", "--episodes", 4, "--baselines", "--json")
    )
    best = load_checkpoint(folder / "best.safetensors").record["best_accuracy"]
    assert report["accuracy"] == pytest.approx(best, abs=1e-12)
    assert {"raw-pixel nearest neighbour", "untrained network"} <= set(report["baselines"])
    command("embed", folder, "--out", tmp_path / "pictures", "--dpi", 50, "--pairs", 1)
    with np.load(tmp_path / "pictures" / "embeddings.npz", allow_pickle=False) as held:
        assert held["features"].shape[1] == load_run(folder, "cpu").learner.backbone.dim
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16)
    for c in range(2):
        (tmp_path / "support" / str(c)).mkdir(parents=True)
        Image.fromarray(images[c, 0]).save(tmp_path / "support" / str(c) / "0.png")
    Image.fromarray(images[1, 3]).save(tmp_path / "query.png")
    words = ("--support", tmp_path / "support", "--query", tmp_path / "query.png", "--json")
    assert "query.png" in command("predict", folder, *words)
    model = FewShotClassifier(folder).fit(images[:3, :2].reshape(6, 16, 16), [0, 0, 1, 1, 2, 2])
    again = pickle.loads(pickle.dumps(model))
    query = images[:3, 5]
    assert np.array_equal(again.predict_proba(query), model.predict_proba(query))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classic-train", "multiclass"])
def test_a_run_of_any_method_is_exported(name, runs, command, tmp_path):
    """The program's own check holds its answers to the run's."""
    command("export", runs[name], "--way", 3, "--out", tmp_path / "program.pt2")
    assert (tmp_path / "program.pt2").stat().st_size > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_command_trains_by_every_method(name, command, tmp_path, wide):
    small = ["train.steps=1", "train.meta_batch=2", "train.way=4", "train.query=2"]
    small += ["train.validate_episodes=2", "tracking.enabled=false", "threads=1"]
    words = [word for setting in small for word in ("--set", setting)]
    preset = "omniglot-5way-1shot-quick"
    given = ("--preset", preset, "--data", wide["omniglot"], "--set", f"method={name}", *words)
    if name == "classic-train":  # it has no heads at their optimum, which the preset asks for
        given += ("--set", "inner.steps=5")
    folder = tmp_path / "run"
    assert f"bilevel-eval {folder}" in command("train", *given, "--out", folder)
    before = (folder / "last.safetensors").read_bytes()
    command("train", *given, "--out", folder, "--resume")
    assert (folder / "last.safetensors").read_bytes() == before


def test_another_method_is_another_run(runs, config, settings):
    given = parse_config(settings(method="approx-train"), "test")
    with pytest.raises(InputError, match="the run has method=approx, but method=approx-train was"):
        RunFolder(runs["approx"]).continued(given)
    with pytest.raises(InputError, match="method is classic-train, but the run began with approx"):
        train(config(method="classic-train", train__average=0.5), runs["approx"], resume=True)


def test_runs_of_before_there_were_methods_are_hyper_representations(tmp_path, config):
    folder = tmp_path / "run"
    train(config(train__steps=2), folder, resume=False)
    for path in (folder / "last.safetensors", folder / "best.safetensors"):
        kept = load_checkpoint(path)
        old = copy.deepcopy(dict(kept.record))
        del old["config"]["method"], old["config"]["model"]["outputs"]
        save_checkpoint(path, replace(kept, record=old))
    assert load_run(folder, "cpu").config.method == "hyper-representation"
    assert train(config(train__steps=2), folder, resume=True) is None


def test_a_loss_that_is_no_number_ends_a_multiclass_run(tmp_path, config):
    """Where no inner run can diverge, the gradient says so."""
    chosen = config(method="multiclass", train__lr=1e38, train__optimizer="sgd")
    with pytest.raises(RunError, match=r"(loss|gradient) .*is (nan|not finite)"):
        train(chosen, tmp_path / "run", resume=False)
