"""Methods of the inner loop on sinusoids, in seconds; the table at length is a benchmark's."""

import pytest

from sinusoids import errors, train


@pytest.mark.slow
def test_learned_step_sizes_learn_sooner_than_maml():
    made = train("meta-sgd", 500)
    assert errors(made, 10, 1) < 0.9


@pytest.mark.slow
def test_maml_goes_on_learning_beyond_the_step_it_was_trained_for():
    made = train("maml", 500)
    after = [errors(made, 10, steps) for steps in (0, 1, 5, 10)]
    assert after[1] < 2.3
    assert after == sorted(after, reverse=True)
