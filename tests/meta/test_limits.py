"""Where a method comes to another one, or to a number that is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from bilevel_meta.support_vectors import crammer_singer
from bilevel_models import heads
from meta_toys import CLASSES, WAY, episodes, learner, logits


def encoded(made, batch):
    return made.encoder(batch.support, batch.query, training=False)


def features(n=6, dim=4, count=2, seed=0):
    return torch.randn(
        count, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


LABELS = torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, -1)


def test_prototypical_logits_are_squared_distances_to_the_class_means():
    made, batch = learner("prototypical").eval(), episodes(shot=3)
    support, query = encoded(made, batch)
    means = torch.stack([support[:, 3 * k : 3 * k + 3].mean(dim=1) for k in range(WAY)], dim=1)
    squares = -(query.unsqueeze(2) - means.unsqueeze(1)).square().sum(dim=-1)
    found = logits(made, batch)
    torch.testing.assert_close(found.log_softmax(-1), squares.log_softmax(-1))


def test_prototypical_logits_do_not_see_a_rotation():
    made, h = learner("prototypical"), features(dim=16)
    rotation = torch.linalg.qr(features(n=16, dim=16, count=1)[0])[0]
    a, b = (heads.logits(made.fit_head(x, LABELS, WAY), x) for x in (h, h @ rotation))
    torch.testing.assert_close(a.softmax(-1), b.softmax(-1))


def test_matching_with_one_shot_and_squared_distances_is_prototypical():
    a, b = learner("matching-euclidean").eval(), learner("prototypical").eval()
    b.backbone.load_state_dict(a.backbone.state_dict())
    with torch.no_grad():
        a.log_temperature.zero_()
    batch = episodes(shot=1)
    torch.testing.assert_close(logits(a, batch), logits(b, batch).log_softmax(-1))


@pytest.mark.parametrize("case", ["matching", "matching-fce", "matching-euclidean"])
def test_matching_gives_probabilities(case):
    total = logits(learner(case), episodes()).exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_matching_goes_from_class_frequencies_to_the_nearest_neighbour():
    made, batch = learner("matching").eval(), episodes()
    support, query = (functional.normalize(h, dim=-1) for h in encoded(made, batch))
    with torch.no_grad():
        made.log_temperature.fill_(-50)
    shares = logits(made, batch).exp()
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / WAY))
    with torch.no_grad():
        made.log_temperature.fill_(12)
    nearest = batch.support_labels.gather(1, (query @ support.mT).argmax(dim=-1))
    assert torch.equal(logits(made, batch).argmax(dim=-1), nearest)


def test_full_context_embeddings_whose_weights_are_zero_change_nothing():
    a, b = learner("matching-fce").eval(), learner("matching").eval()
    b.load_state_dict(a.state_dict(), strict=False)
    for part in (a.context, a.reader):
        for parameter in part.parameters():
            parameter.data.zero_()
    torch.testing.assert_close(logits(a, episodes()), logits(b, episodes()))


def test_siamese_pairs_are_symmetric_and_know_nothing_of_an_image_beside_itself():
    made, h = learner("siamese"), features(dim=16)
    odds = made.pairs(h, h)
    torch.testing.assert_close(odds, odds.mT)
    torch.testing.assert_close(odds.diagonal(dim1=1, dim2=2), made.bias.expand(2, 6))


def test_siamese_with_equal_weights_takes_the_nearest_by_absolute_distance():
    made, batch = learner("siamese").eval(), episodes(shot=1)
    made.weights.data.fill_(-0.3)
    support, query = encoded(made, batch)
    nearest = torch.cdist(query, support, p=1).argmin(dim=-1)
    assert torch.equal(logits(made, batch).argmax(dim=-1), nearest)


def test_ridge_with_a_large_decay_points_to_class_sums_and_with_none_fits_the_support():
    made, h = learner("ridge"), features(n=3, dim=16)
    y = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    with torch.no_grad():
        made.log_decay.fill_(math.log(1e12))
        made.log_factor.fill_(math.log(3e12))
    head = made.fit_head(h, LABELS[:, :3], WAY)
    torch.testing.assert_close(head["weight"], h.mT @ y)
    with torch.no_grad():
        made.log_decay.fill_(math.log(1e-12))
        made.log_factor.fill_(0.0)
    fitted = heads.logits(made.fit_head(h, LABELS[:, :3], WAY), h)
    torch.testing.assert_close(fitted, y, atol=1e-6, rtol=0)


def test_relation_scores_follow_their_classes_and_sum_the_images_of_one():
    made, batch = learner("relation").eval(), episodes(shot=1)
    twice = batch.support.repeat(1, 2, 1, 1, 1)
    labels = batch.support_labels.repeat(1, 2)
    with torch.no_grad():
        once = made.adapt(batch.support, batch.support_labels, WAY).head.classes
        both = made.adapt(twice, labels, WAY).head.classes
    torch.testing.assert_close(both, 2 * once)


def test_cosine_heads_are_bounded_and_do_not_see_the_length_of_features():
    made, h = learner("baseline++"), features(dim=16)
    a = made.fit_head(h, LABELS, WAY).logits(h)
    torch.testing.assert_close(a, made.fit_head(5 * h, LABELS, WAY).logits(7 * h))
    assert a.abs().max() <= made.scale
    assert made.outputs(h).abs().max() <= made.scale
    assert made.outputs(h).shape == (2, 6, CLASSES)


def test_cosine_heads_descend_on_their_own_loss():
    """The gradient that is written out is autograd's."""
    made, h = learner("baseline++", steps=1), features(dim=16)
    y = heads.one_hot(LABELS, WAY, h)
    start = (functional.normalize(h, dim=-1).mT @ y / 2).requires_grad_()
    scores = made.scale * functional.normalize(h, dim=-1) @ functional.normalize(start, dim=1)
    heads.cross_entropy(scores, LABELS).sum().backward()
    after = functional.normalize(start.detach() - made.step_size * start.grad, dim=1)
    torch.testing.assert_close(made.fit_head(h, LABELS, WAY).weights, made.scale * after)


def test_simpleshot_sees_neither_length_nor_the_classes_of_the_test():
    made, h = learner("simpleshot").train(), features(dim=16)
    for seed in range(2):
        made.loss(episodes(seed=seed))
    mean = made.mean.clone()
    a = made.fit_head(h, LABELS, WAY).logits(h)
    stretched = mean + 3 * (h - mean)
    torch.testing.assert_close(a, made.fit_head(stretched, LABELS, WAY).logits(stretched))
    assert torch.equal(mean, made.mean)
    made.eval().loss(episodes(seed=2))
    assert torch.equal(mean, made.mean)


def test_anil_from_zero_is_the_hyper_representation():
    made, batch = learner("anil").eval(), episodes()
    for leaf in (made.weight, made.bias):
        leaf.data.zero_()
    support, query = encoded(made, batch)
    y = heads.one_hot(batch.support_labels, WAY, support)
    head = heads.descend(support, y, steps=made.steps, step_size=made.log_step_size.exp())
    torch.testing.assert_close(logits(made, batch), heads.logits(head, query))


def test_anil_refuses_another_way():
    batch = episodes(way=2)
    with pytest.raises(ValueError, match="way=2"):
        learner("anil").adapt(batch.support, batch.support_labels, 2)


@pytest.mark.parametrize("bound", [0.1, 1.0, 100.0])
def test_support_vectors_meet_the_conditions_of_the_optimum(bound):
    h = features(n=6, dim=4)
    y = heads.one_hot(LABELS, WAY, h)
    alpha = crammer_singer(h @ h.mT, y, bound=bound)
    zeros = torch.zeros(2, 6, dtype=torch.float64)
    torch.testing.assert_close(alpha.sum(dim=-1), zeros, atol=1e-9, rtol=0)
    assert (alpha <= bound * y + 1e-9).all()
    # ∇ + u + ν = 0 with u ≥ 0, and u = 0 where α is below its bound.
    slope = h @ h.mT @ alpha + alpha - y
    free = alpha < bound * y - 1e-6
    assert free.any(dim=-1).all()
    nu = -(slope * free).sum(dim=-1, keepdim=True) / free.sum(dim=-1, keepdim=True)
    u = -slope - nu
    assert (u > -1e-7).all()
    torch.testing.assert_close(u * free, torch.zeros_like(u), atol=1e-7, rtol=0)


def test_a_small_bound_is_reached_by_every_image():
    h = features()
    y = heads.one_hot(LABELS, WAY, h)
    alpha = crammer_singer(h @ h.mT, y, bound=1e-4)
    own = (alpha * y).sum(dim=-1)
    torch.testing.assert_close(own, torch.full_like(own, 1e-4))


def test_the_derivative_of_support_vectors_is_the_central_difference():
    h = features(seed=3).requires_grad_()
    y = heads.one_hot(LABELS, WAY, h)

    def alpha(x):
        return crammer_singer(x @ x.mT, y, bound=0.5)

    assert torch.autograd.gradcheck(alpha, (h,), eps=1e-6, atol=1e-5)


def test_support_vectors_refuse_a_bound_that_is_none():
    with pytest.raises(ValueError, match="bound"):
        crammer_singer(torch.eye(2)[None], torch.eye(2)[None], bound=0.0)


def test_support_vectors_take_single_precision_and_uneven_shots():
    h, labels = features().float(), torch.tensor([0, 0, 0, 1, 2, 2]).expand(2, -1)
    alpha = crammer_singer(h @ h.mT, heads.one_hot(labels, WAY, h), bound=0.1)
    assert alpha.dtype == torch.float32
    assert np.isfinite(alpha.numpy()).all()
