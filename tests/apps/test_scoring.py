"""Accuracy and its interval over fixed episodes."""

import math

import numpy as np
import pytest
import torch

from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import episode_sampler, make_learner
from bilevel_apps.scoring import score as scoring
from bilevel_apps.scoring.score import episode_accuracies, nearest_pixel, score, score_episodes
from bilevel_data import open_store
from bilevel_meta import evaluation
from bilevel_meta.episodes import Episodes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(store):
    return open_store(store)


def sampler_of(opened, seed=0):
    spec = {"way": 4, "shot": 2, "query": 3}
    return episode_sampler(opened, "test", spec, keys="them", seed=seed, rotations=False)


def test_interval_by_hand():
    found = score(np.array([0.2, 0.4, 0.9]))
    assert found.accuracy == pytest.approx(0.5)
    # Σ(x - 0.5)² = 0.09 + 0.01 + 0.16, over n - 1 = 2
    assert found.ci95 == pytest.approx(1.96 * math.sqrt(0.26 / 2) / math.sqrt(3))
    assert found.episodes == 3
    assert str(found) == "50.00 ± 40.80 %"


def test_equal_episodes_have_no_spread_and_one_alone_is_no_score():
    assert score(np.array([0.3, 0.3])).ci95 == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InputError, match="episodes=1: fewer than two have no interval"):
        score(np.array([0.3]))


@pytest.mark.parametrize("pixels", [1, 20 * 256 * 3, 10**9])
def test_score_does_not_depend_on_the_batch(opened, config, monkeypatch, pixels):
    task = make_learner(config(), (16, 16, 1), CPU)
    sizes, results = [], []

    def classify(episodes):
        sizes.append(len(episodes.support))
        results.append(task.accuracies(episodes))
        return results[-1]

    monkeypatch.setattr(evaluation, "BATCH_PIXELS", pixels)
    found = score_episodes(classify, sampler_of(opened), episodes=7, device=CPU)
    assert sizes == {1: [1] * 7, 20 * 256 * 3: [3, 3, 1], 10**9: [7]}[pixels]
    single = torch.cat([task.accuracies(each) for each in _one_by_one(opened, 7)])
    assert torch.cat(results).tolist() == single.tolist()
    assert found == score(single.numpy())
    each = episode_accuracies(task.accuracies, sampler_of(opened), episodes=7, device=CPU)
    assert each.tolist() == single.tolist()


def _one_by_one(opened, episodes):
    sampler = sampler_of(opened)
    return [scoring.to_device(sampler.batch(i, 1), 4, CPU) for i in range(episodes)]


def test_a_seed_fixes_the_episodes(opened):
    def seen(seed):
        found = []

        def classify(episodes):
            found.append(episodes.query.clone())
            return torch.zeros(len(episodes.query))

        score_episodes(classify, sampler_of(opened, seed), episodes=5, device=CPU)
        return torch.cat(found)

    assert torch.equal(seen(3), seen(3))
    assert not torch.equal(seen(3), seen(4))


def test_progress_counts_episodes(opened, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_PIXELS", 20 * 256 * 2)
    done = []
    score_episodes(nearest_pixel, sampler_of(opened), episodes=5, device=CPU, progress=done.append)
    assert done == [2, 4, 5]


def test_nearest_pixel_by_hand():
    def images(*values):
        return torch.tensor(values).view(1, -1, 1, 1, 1).float()

    episodes = Episodes(
        support=images(0.0, 1.0, 0.5),
        query=images(0.1, 0.8, 0.6, 0.3),
        support_labels=torch.tensor([[0, 1, 2]]),
        query_labels=torch.tensor([[0, 1, 1, 2]]),  # the third is nearest to class 2
        way=3,
    )
    assert nearest_pixel(episodes).tolist() == [0.75]


def test_nearest_pixel_takes_labels_from_its_own_episode():
    support = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 2, 1, 1, 1)
    episodes = Episodes(
        support=support,
        query=support.clone(),
        support_labels=torch.tensor([[0, 1], [1, 0]]),
        query_labels=torch.tensor([[0, 1], [0, 1]]),
        way=2,
    )
    assert nearest_pixel(episodes).tolist() == [1.0, 0.0]
