"""What every method must do, one list of properties for all."""

from dataclasses import replace

import pytest
import torch

from bilevel_meta.registry import LEARNERS
from bilevel_models import Normalization
from meta_toys import CASES, WAY, episodes, learner, logits, one_of

# Methods that see the support images one after another.
ORDERED = {"matching-fce", "memory", "meta-networks", "snail"}
# Methods that know classes by their index.
LABELLED = {
    *("anil", "boil", "cavia", "fomaml", "imaml", "learned-optimizer", "maml", "maml++"),
    *("meta-lstm", "meta-networks", "meta-sgd", "reptile", "snail"),
}
# Methods whose gradient leaves something out, each by its own definition.
APPROXIMATE = {
    *("fomaml", "imaml", "learned-optimizer", "memory", "meta-lstm", "meta-networks", "reptile"),
}
# Trained without labels, they find classes where images of one are alike.
UNSUPERVISED = {"neural-statistician"}
# Methods for which a class with more images than another is no class of the same kind.
EVEN = {"relation", "snail"}
SHOT = 2
CENTRAL = 1e-7

each = pytest.mark.parametrize("case", CASES)


@each
def test_adapt_changes_nothing_and_repeats_itself(case):
    made, batch = learner(case).train(), episodes()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    random = torch.get_rng_state()
    first = logits(made, batch)
    assert torch.equal(first, logits(made, batch))
    assert torch.equal(random, torch.get_rng_state())
    after = made.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@each
def test_episodes_together_are_episodes_one_by_one(case):
    made, batch = learner(case).eval(), episodes(count=3)
    alone = torch.cat([logits(made, one_of(batch, i)) for i in range(3)])
    torch.testing.assert_close(logits(made, batch), alone)
    torch.testing.assert_close(made.scores(batch), alone)


@each
def test_query_labels_do_not_matter(case):
    made, batch = learner(case).eval(), episodes()
    other = replace(batch, query_labels=(batch.query_labels + 1) % WAY)
    assert torch.equal(made.scores(batch), made.scores(other))


@each
@pytest.mark.parametrize("normalization", Normalization)
def test_a_query_alone_is_a_query_among_others_where_that_is_said(case, normalization):
    if normalization not in LEARNERS[CASES[case][0]].allowed:
        with pytest.raises(ValueError, match="norm="):
            learner(case, norm=normalization)
        return
    made, batch = learner(case, norm=normalization).eval(), episodes(query=4)
    classifier = made.adapt(batch.support, batch.support_labels, WAY)
    alone = torch.cat([classifier.logits(x) for x in batch.query.split(1, dim=1)], dim=1)
    close = torch.allclose(alone, classifier.logits(batch.query))
    assert close is normalization.inductive


@each
def test_the_order_of_the_support_images_does_not_matter(case):
    made, batch = learner(case).eval(), episodes()
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    other = replace(
        batch, support=batch.support[:, order], support_labels=batch.support_labels[:, order]
    )
    same = torch.allclose(logits(made, batch), logits(made, other))
    assert same is (case not in ORDERED)


@each
def test_renaming_classes_renames_logits(case):
    made, batch = learner(case).eval(), episodes()
    names = torch.tensor([2, 0, 1])
    other = replace(batch, support_labels=names[batch.support_labels])
    same = torch.allclose(logits(made, batch), logits(made, other)[..., names])
    assert same is (case not in LABELLED)


@each
def test_random_labels_are_guessed_by_chance(case):
    made = learner(case).eval()
    hits = []
    for seed in range(4):
        batch = episodes(count=20, query=4, seed=seed)
        with torch.no_grad():
            right = made.scores(batch).argmax(dim=-1) == batch.query_labels
        hits.append(right.double().mean(dim=1))  # an episode's answers hang together
    hits = torch.cat(hits)
    assert abs(hits.mean() - 1 / WAY) <= 3 * hits.std() / len(hits) ** 0.5 + 1e-9


@each
def test_one_episode_is_learned_by_heart(case):
    made, batch = learner(case).train(), episodes(count=1, query=2)
    if case in UNSUPERVISED:
        batch = episodes(count=1, query=2, noise=0.2)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(150):
        for loss in made.losses(batch):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if torch.equal(made.scores(batch).argmax(dim=-1), batch.query_labels):
            return
    pytest.fail("150 steps did not do")


@pytest.mark.parametrize("case", [case for case in CASES if case not in APPROXIMATE])
def test_the_gradient_is_that_of_the_loss(case):
    made, batch = learner(case).train(), episodes()
    before = {name: value.clone() for name, value in made.named_buffers()}
    made.loss(batch).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            continue
        towards = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -2, 1):
            parameter.data += sign * CENTRAL * towards
            made.load_state_dict(before, strict=False)
            with torch.no_grad():
                values.append(made.loss(batch))
        slope = (values[0] - values[1]) / (2 * CENTRAL)
        found = torch.zeros(()) if parameter.grad is None else (parameter.grad * towards).sum()
        torch.testing.assert_close(found.double(), slope, rtol=1e-4, atol=1e-6, msg=name)


@each
def test_every_part_of_lambda_learns(case):
    made = learner(case).train()
    next(iter(made.losses(episodes()))).backward()
    silent = {
        name
        for name, parameter in made.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }
    assert silent == set()


@each
@pytest.mark.parametrize("kind", ["duplicates", "black", "one shot"])
def test_degenerate_images_give_finite_numbers(case, kind):
    made, batch = learner(case).train(), episodes()
    if kind == "one shot":
        made, batch = learner(case, **({"shot": 1} if case == "snail" else {})), episodes(shot=1)
    if kind == "duplicates":
        batch = replace(batch, support=batch.support[:, :1].expand_as(batch.support))
    if kind == "black":
        batch = replace(batch, support=0 * batch.support, query=0 * batch.query)
    assert made.scores(batch).isfinite().all()
    made.loss(batch).backward()
    grads = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@each
def test_uneven_shots_are_taken_or_refused(case):
    made, batch = learner(case).eval(), episodes()
    labels = batch.support_labels.clone()
    labels[:, labels[0] == WAY - 1] = 0  # moved to class 0, but for one
    labels[:, -1] = WAY - 1
    batch = replace(batch, support_labels=labels)
    if case in EVEN:
        with pytest.raises(ValueError, match="of each class"):
            made.scores(batch)
    else:
        assert made.scores(batch).isfinite().all()


@each
def test_saved_weights_give_the_same_logits(case):
    made, batch = learner(case).train(), episodes()
    made.loss(batch)  # lets averages follow
    other = learner(case, seed=5)
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(logits(made, batch), logits(other, batch))


@each
def test_another_backward_pass_is_refused(case):
    made, batch = learner(case).train(), episodes()
    weight = made.backbone.convolutions[0].weight
    loss = made.loss(batch)
    with pytest.raises((NotImplementedError, RuntimeError)):  # noqa: PT012
        (grad,) = torch.autograd.grad(loss, [weight], create_graph=True)
        torch.autograd.grad(grad.square().sum(), [weight])
