"""The average of the weights: its closed form, what it holds, and that it is what is scored."""

import pytest
import torch

from bilevel_apps.runs.build import make_learner, model_tensors, part_of
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.score import score_episodes
from bilevel_apps.training import loop as module
from bilevel_apps.training.loop import train
from bilevel_apps.training.optimizer import weight_average

SHAPE, CPU = (16, 16, 1), torch.device("cpu")


def walk(task, steps):
    """Move all weights and running averages at random; yield a copy after each step."""
    torch.manual_seed(1)
    for _ in range(steps):
        with torch.no_grad():
            for tensor in task.state_dict().values():
                tensor.copy_(torch.randn_like(tensor))
        yield {name: tensor.clone() for name, tensor in task.state_dict().items()}


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_the_weighted_mean(config, decay, steps):
    task = make_learner(config(), SHAPE, CPU)
    task.double()
    average = weight_average(task, decay)
    seen = []
    for state in walk(task, steps):
        average.update_parameters(task)
        seen.append(state)
    weights = [decay ** (steps - i) for i in range(1, steps + 1)]
    found = average.module.state_dict()
    assert found.keys() == seen[0].keys()
    assert {"log_lr", "log_scale", "backbone.norms.0.running_var"} <= found.keys()
    for name, tensor in found.items():
        expected = sum(w * s[name] for w, s in zip(weights, seen, strict=True)) / sum(weights)
        assert torch.allclose(tensor, expected, rtol=1e-10, atol=1e-12), name


def test_following_leaves_the_weights_alone(config):
    task = make_learner(config(), SHAPE, CPU)
    average = weight_average(task, 0.5)
    for state in walk(task, 3):
        average.update_parameters(task)
        assert all(torch.equal(task.state_dict()[k], v) for k, v in state.items())
    assert not any(p.requires_grad for p in average.module.parameters())
    assert average.module.backbone is not task.backbone


def test_the_average_is_scored_saved_and_evaluated(tmp_path, config):
    folder = tmp_path / "run"
    chosen = config(train__average=0.9, train__lr=1e-2)
    best = train(chosen, folder, resume=False)
    run = load_run(folder, "cpu")
    saved = load_checkpoint(run.path)
    sampler = run.sampler(run.store(None), "val", seed=chosen.seed, rotations=False)
    episodes = chosen.train.validate_episodes

    def scored(weights):
        run.learner.load_state_dict(weights)
        return score_episodes(run.learner.accuracies, sampler, episodes=episodes, device=CPU)

    used = {name: tensor.clone() for name, tensor in run.learner.state_dict().items()}
    averaged, raw = (part_of(saved.tensors, part) for part in ("average", "model"))
    assert all(torch.equal(used[name], averaged[name]) for name in averaged)
    assert averaged.keys() == raw.keys()
    assert not any(torch.equal(averaged[n], raw[n]) for n in raw if "convolutions" in n)
    assert scored(averaged) == best
    assert saved.record["best_accuracy"] == best.accuracy


def test_averaging_does_not_change_the_weights_that_learn(tmp_path, config, trained):
    train(config(train__average=0.9), tmp_path / "run", resume=False)
    with_, without = (
        part_of(load_checkpoint(folder / "last.safetensors").tensors, "model")
        for folder in (tmp_path / "run", trained)
    )
    assert all(torch.equal(with_[name], without[name]) for name in without)


def test_without_an_average_the_weights_are_used(trained):
    tensors = load_checkpoint(trained / "last.safetensors").tensors
    assert not part_of(tensors, "average")
    assert model_tensors(tensors).keys() == part_of(tensors, "model").keys()


def test_validation_leaves_the_average_alone(tmp_path, config, monkeypatch):
    """In the modes that track statistics too."""
    seen = []
    whole = module.score_learner

    def watch(task, *arguments, **options):
        before = {k: v.clone() for k, v in task.state_dict().items()}
        found = whole(task, *arguments, **options)
        seen.append(all(torch.equal(before[k], v) for k, v in task.state_dict().items()))
        return found

    monkeypatch.setattr(module, "score_learner", watch)
    train(config(train__average=0.9, model__norm="ghost"), tmp_path / "run", resume=False)
    assert seen == [True] * 3


def test_an_average_keeps_the_tasks_other_choices(config):
    task = make_learner(config(inner__steps=7, model__norm="support"), SHAPE, CPU)
    average = weight_average(task, 0.5)
    for name in ("steps", "normalization", "unit_length", "autocast", "through", "united"):
        assert getattr(average.module, name) == getattr(task, name)
