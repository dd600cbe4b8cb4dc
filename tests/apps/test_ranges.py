"""Trainings whose number of classes and of pictures is a range: each meta-batch draws its own."""

import pytest
import torch

from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.processes import Processes
from bilevel_apps.training.data_parallel import Shard
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare
from bilevel_data import EpisodeSampler, VariedSampler, open_store

ALONE = Processes()
RANGES = {"train__shot": [1, 4], "train__way": [3, 6], "train__query": 3}


def prepared(config, folder):
    return prepare(config, RunFolder(folder), open_store(config.data), torch.device("cpu"), ALONE)


def sizes(batch):
    way = batch.classes.shape[1]
    return way, batch.support.shape[1] // way


def test_each_meta_batch_draws_its_own_sizes(tmp_path, config):
    chosen = config(**RANGES)
    made, each = prepared(chosen, tmp_path), chosen.train.meta_batch
    sampler = made.batches()
    drawn = [sizes(sampler.batch(step * each, each)) for step in range(40)]
    assert {way for way, _ in drawn} == {3, 4, 5, 6}
    assert {shot for _, shot in drawn} == {1, 2, 3, 4}
    assert drawn == [sizes(made.batches().batch(k * each, each)) for k in range(40)]
    for step in range(3):  # as many pictures of every class of an episode
        way, shot = drawn[step]
        labels = torch.from_numpy(sampler.batch(step * each, each).support_labels)
        assert torch.equal(labels, torch.arange(way).repeat_interleave(shot).expand(each, -1))
    episode = chosen.episode
    assert sizes(made.val_episodes.batch(0, 1)) == (episode.way, episode.shot)


def test_one_number_draws_the_episodes_that_it_always_did(tmp_path, config):
    number, same = (prepared(config(train__shot=shot), tmp_path) for shot in (2, [2, 2]))
    assert isinstance(number.train_episodes, EpisodeSampler)
    assert isinstance(same.train_episodes, VariedSampler)
    one, other = (made.batches().batch(0, 1) for made in (number, same))
    assert (one.support == other.support).all()
    assert (one.query == other.query).all()


@pytest.mark.parametrize("overlap", [False, True])
def test_processes_share_one_meta_batch(tmp_path, config, overlap):
    made = prepared(config(**RANGES, train__meta_batch=4, train__overlap=overlap), tmp_path)
    whole = made.batches().batch(8, 4)
    for rank in range(2):
        shard = Shard(whole=made.train_episodes, processes=Processes(rank=rank, size=2))
        part = shard.batch(8, 4)
        assert (part.support == whole.support[2 * rank : 2 * rank + 2]).all()


def test_resumed_to_the_bit(tmp_path, config, train_killed):
    chosen = config(**RANGES, inner__steps=None, train__checkpoint_every=1)
    train(chosen, tmp_path / "whole", resume=False)
    folder = tmp_path / "cut"
    train_killed(chosen, folder, 2)
    train(RunFolder(folder).load_config(), folder, resume=True)
    last = "last.safetensors"
    assert (folder / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_what_no_class_has_is_refused(tmp_path, config):
    with pytest.raises(InputError, match=r"shot=19 plus query=3 .*train\.shot"):
        prepared(config(train__shot=[1, 19], train__query=3), tmp_path)
    with pytest.raises(InputError, match=r"way=99 .*train\.way"):
        prepared(config(train__way=[5, 99]), tmp_path)
