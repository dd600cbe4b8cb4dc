"""Methods of the inner loop on sinusoids, in seconds; the table at length is a benchmark's."""

import pytest
import torch

from bilevel_meta.sinusoid import METHODS, draw, errors, train


@pytest.mark.slow
def test_learned_step_sizes_learn_sooner_than_maml():
    made = train("meta-sgd", 500)
    assert errors(made, shot=10, steps=1).mean() < 0.9


@pytest.mark.slow
def test_maml_goes_on_learning_beyond_the_step_it_was_trained_for():
    made = train("maml", 500)
    after = [float(errors(made, shot=10, steps=steps).mean()) for steps in (0, 1, 5, 10)]
    assert after[1] < 2.3
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_steps(method):
    made, fresh = train(method, 2), train(method, 0)
    before, after = (dict(m.named_parameters()) for m in (fresh, made))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    found = errors(made, shot=5, steps=1, tasks=3)
    assert found.shape == (3,)
    assert (found > 0).all()


def test_sinusoids_are_what_they_are_called():
    tasks = draw(4, 3, 50, torch.Generator().manual_seed(0))
    assert tasks.x.shape == (4, 3, 1)
    assert tasks.y_query.shape == (4, 50, 1)
    assert tasks.x_query.abs().max() <= 5
    assert tasks.y_query.abs().max() <= 5
