"""The contract: what a method inherits, on a toy backbone in float64."""

import pytest
import torch
from torch import nn

from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Episodes
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_models import EACH_SET, Normalization, heads


class Flat(nn.Module):
    """Three linear features of a picture."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, images, statistics=EACH_SET):
        return self.linear(images.flatten(1))


class Ridge(HeadLearner):
    def fit_head(self, features, labels, way):
        return heads.ridge(features, heads.one_hot(labels, way, features), decay=0.1)


def episodes(count=2, way=3, shot=2, query=4):
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(way)

    def images(n):
        return torch.rand(count, way * n, 1, 4, 4, generator=generator, dtype=torch.float64)

    return Episodes(
        support=images(shot),
        query=images(query),
        support_labels=label.repeat_interleave(shot).expand(count, -1),
        query_labels=label.repeat(query).expand(count, -1),
        way=way,
    )


def test_a_fit_is_all_that_a_method_needs():
    learner, batch = Ridge(Flat()), episodes()
    (loss,) = learner.losses(batch)
    loss.backward()
    h, q = (learner.backbone.linear(x.flatten(2)) for x in (batch.support, batch.query))
    head = heads.ridge(h, heads.one_hot(batch.support_labels, 3, h), decay=0.1)
    by_hand = heads.cross_entropy(heads.logits(head, q), batch.query_labels).mean()
    weight = learner.backbone.linear.weight
    (grad,) = torch.autograd.grad(by_hand, [weight])
    torch.testing.assert_close(loss.detach(), by_hand.detach())
    torch.testing.assert_close(weight.grad, grad)


@pytest.mark.parametrize("normalization", Normalization)
def test_a_classifier_says_of_queries_what_the_scores_say(normalization):
    learner, batch = Ridge(Flat(), norm=normalization).eval(), episodes()
    classifier = learner.adapt(batch.support, batch.support_labels, batch.way)
    torch.testing.assert_close(classifier.logits(batch.query), learner.scores(batch))


def test_a_normalization_that_does_not_suit_is_refused():
    class Picky(Ridge):
        allowed = frozenset({Normalization.EPISODE})

    with pytest.raises(ValueError, match="ghost"):
        Picky(Flat())


def test_learner_is_abstract():
    with pytest.raises(TypeError):
        Learner()


@pytest.mark.parametrize(
    "wrong", [{"way": 1}, {"shot": 0}, {"shot": (3, 2)}, {"query": 0}, {"episodes": 0}]
)
def test_a_diet_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Diet(**wrong)


def test_the_shot_of_an_iteration_is_drawn_from_all_of_the_range():
    diet = Diet(shot=(1, 3))
    shots = [diet.shot_of(k, seed=0) for k in range(50)]
    assert set(shots) == {1, 2, 3}
    assert shots == [diet.shot_of(k, seed=0) for k in range(50)]
    assert {Diet(shot=4).shot_of(k, seed=0) for k in range(5)} == {4}
