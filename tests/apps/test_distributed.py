"""Several processes come to what one comes to, and end together."""

import copy
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import episode_sampler, make_learner
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.scoring import feature_table as tables
from bilevel_apps.scoring import score as scoring
from bilevel_apps.scoring.learner import learner_accuracies
from bilevel_apps.system.hardware import set_threads
from bilevel_apps.system.processes import ALONE, Processes, connected, launched
from bilevel_apps.training import loop as module
from bilevel_apps.training.data_parallel import (
    Shard,
    check_shareable,
    shared_hypergradient,
    use_own_gpu,
)
from bilevel_apps.training.gradients import outer_steps
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare
from bilevel_apps.training.tracking import start_tracking
from bilevel_data import open_store
from bilevel_meta import evaluation
from bilevel_meta.episodes import to_device
from forked import run_together

CPU = torch.device("cpu")
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@dataclass
class Table:
    """Where threads that play processes put what they add."""

    size: int
    parts: dict = field(default_factory=dict)

    def __post_init__(self):
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass
class Thread:
    """A process of `size`, as far as a hyper-iteration and a score need one."""

    rank: int
    table: Table
    sums: int = 0

    @property
    def size(self):
        return self.table.size

    def add(self, values):
        self.sums += 1
        self.table.parts[self.rank] = values.clone()
        self.table.barrier.wait()
        values.copy_(sum(self.table.parts[rank] for rank in range(self.size)))
        self.table.barrier.wait()

    def from_first(self, make):
        if self.rank == 0:
            self.table.parts["made"] = make()
        self.table.barrier.wait()
        made = self.table.parts["made"]
        self.table.barrier.wait()
        return made


def together(size, work):
    """Return `work(process)` of as many processes, which are threads."""
    table, results = Table(size), {}

    def run(rank):
        process = Thread(rank, table)
        results[rank] = (work(process), process.sums)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == size
    return [results[rank] for rank in range(size)]


@pytest.fixture
def sampler(store):
    spec = {"way": 4, "shot": 1, "query": 3}
    return episode_sampler(open_store(store), "train", spec, keys="them", seed=0, rotations=False)


def task_of(config, **changes):
    task = make_learner(config(**changes), (16, 16, 1), CPU)
    task.double()
    return task


def in_double(batch):
    episodes = to_device(batch, 4, CPU)
    return replace(episodes, support=episodes.support.double(), query=episodes.query.double())


@pytest.mark.parametrize("norm", ["ghost", "support", "episode"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_divided_hyper_iteration_is_the_whole_one(sampler, config, norm, size):
    task = task_of(config, model__norm=norm)
    expected, *copies = (copy.deepcopy(task) for _ in range(size + 1))
    steps = range(3)  # with the same weights: what moves is the running averages
    for step in steps:
        (whole,) = outer_steps(expected, in_double(sampler.batch(6 * step, 6)))

    def work(process):
        mine = copies[process.rank]
        for step in steps:
            batch = Shard(whole=sampler, processes=process).batch(6 * step, 6)
            found = shared_hypergradient(mine, in_double(batch), process, stop=False)
        return found

    for outcome, sums in together(size, work):
        assert sums == len(steps)  # one all-reduce a hyper-iteration
        assert outcome.loss == pytest.approx(whole.loss, rel=1e-12)
        assert outcome.accuracy == pytest.approx(whole.accuracy, rel=1e-12)
        assert outcome.stop is False
    grads = {name: p.grad for name, p in expected.named_parameters()}
    assert sum(bool(grad.abs().max() > 0) for grad in grads.values()) > 6
    for mine in copies:
        for name, parameter in mine.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-10, atol=1e-13)
        for name, average in expected.named_buffers():
            found = mine.get_buffer(name)
            torch.testing.assert_close(found, average, rtol=1e-12, atol=1e-14)
            assert (found.std() > 1e-3) == (norm == "ghost")


@pytest.mark.parametrize("asked", list(itertools.product([False, True], repeat=2)))
def test_all_stop_when_one_was_asked_to(sampler, config, asked):
    copies = [task_of(config) for _ in asked]

    def work(process):
        batch = in_double(sampler.batch(process.rank, 1))
        stop = asked[process.rank]
        return shared_hypergradient(copies[process.rank], batch, process, stop=stop).stop

    assert [stop for stop, _ in together(2, work)] == [any(asked)] * 2


def test_alone_nothing_is_shared(sampler, config):
    task, other = task_of(config), task_of(config)
    episodes = in_double(sampler.batch(0, 2))
    outcome = shared_hypergradient(task, episodes, ALONE, stop=True)
    (own,) = outer_steps(other, episodes)
    assert outcome == replace(own, stop=True)
    for mine, its in zip(task.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)
    assert Shard(whole=sampler, processes=ALONE).batch(3, 2).query.shape[0] == 2
    values = torch.tensor([2.0])
    ALONE.add(values)
    ALONE.wait()
    assert values.item() == 2.0
    assert ALONE.from_first(lambda: 5) == 5
    with connected(ALONE):
        assert not torch.distributed.is_initialized()


def test_shards_are_the_meta_batch_in_order(sampler):
    parts = [Shard(whole=sampler, processes=Processes(rank=r, size=3)) for r in range(3)]
    whole = sampler.batch(12, 6)
    for name in ("support", "query", "support_labels", "query_labels"):
        found = np.concatenate([getattr(part.batch(12, 6), name) for part in parts])
        assert np.array_equal(found, getattr(whole, name))


@pytest.mark.parametrize("size", [2, 3, 9])
def test_a_divided_score_is_the_whole_one(sampler, config, monkeypatch, size):
    """Also where a process has no batch at all."""
    task = make_learner(config(), (16, 16, 1), CPU)
    monkeypatch.setattr(evaluation, "BATCH_PIXELS", 16 * 256 * 2)

    def work(process):
        return scoring.score_episodes(
            task.accuracies, sampler, episodes=11, device=CPU, processes=process
        )

    expected = scoring.score_episodes(task.accuracies, sampler, episodes=11, device=CPU)
    assert expected.ci95 > 0
    assert [found for found, _ in together(size, work)] == [expected] * size


@pytest.mark.parametrize("norm", ["ghost", "support"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_a_divided_validation_is_the_whole_one(sampler, config, monkeypatch, norm, size):
    """Each image is encoded by one process alone, where its features do not depend on others."""
    task = make_learner(config(model__norm=norm), (16, 16, 1), CPU)
    monkeypatch.setattr(evaluation, "BATCH_PIXELS", 16 * 256 * 2)
    monkeypatch.setattr(tables, "BATCH_PIXELS", 256 * 20)
    encoded, whole = [], tables._encoded

    def watch(task, pixels, device):
        encoded.append(len(pixels))
        return whole(task, pixels, device)

    monkeypatch.setattr(tables, "_encoded", watch)
    expected = learner_accuracies(task, sampler, episodes=11, device=CPU)
    alone = sorted(encoded)
    encoded.clear()

    def work(process):
        return learner_accuracies(task, sampler, episodes=11, device=CPU, processes=process)

    for found, _ in together(size, work):
        assert found.tolist() == expected.tolist()
    assert sorted(encoded) == alone
    assert (len(alone) > 3) == (norm == "ghost")
    assert expected.tolist() == (
        scoring.episode_accuracies(task.accuracies, sampler, episodes=11, device=CPU).tolist()
    )


def test_who_this_process_is():
    assert launched(TORCHRUN) == Processes(rank=3, size=4, local_rank=1, local_size=2)
    assert not launched(TORCHRUN).first
    assert launched(TORCHRUN | {"RANK": "0"}).first


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_without_torchrun_a_process_is_alone(missing):
    environ = {key: value for key, value in TORCHRUN.items() if key != missing}
    assert launched(environ) is ALONE
    assert ALONE.first


@pytest.mark.parametrize(
    ("said", "expected"), [("3", 3), ("2,1", 2), ("", None), ("many", None), ("0", None)]
)
def test_omp_num_threads_is_honoured(monkeypatch, said, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert set_threads(None) == (expected or len(os.sched_getaffinity(0)))
    assert set_threads(1) == 1


def test_cores_are_divided(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert set_threads(None) == cores
    assert set_threads(None, sharers=cores) == 1
    assert set_threads(None, sharers=10 * cores) == 1
    assert set_threads(cores, sharers=cores) == 1
    assert set_threads(1, sharers=1) == torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (3, {}, "train.meta_batch=2: 3 processes cannot share it evenly: set a multiple of 3"),
        (2, {"model__norm": "batch"}, "model.norm=batch: its statistics are those of the whole"),
    ],
)
def test_what_cannot_be_divided_is_refused(config, size, changes, message):
    chosen = config(**changes)
    model = make_learner(chosen, (16, 16, 1), CPU)
    check_shareable(chosen, model, ALONE)
    with pytest.raises(InputError, match=re.escape(message)):
        check_shareable(chosen, model, Processes(size=size))


def test_a_model_that_remembers_something_else_is_refused(config):
    model = make_learner(config(), (16, 16, 1), CPU)
    check_shareable(config(), model, Processes(size=2))
    model.backbone.register_buffer("seen", torch.zeros(()))
    check_shareable(config(), model, ALONE)
    with pytest.raises(InputError, match=r"2 processes would each have a backbone\.seen of their"):
        check_shareable(config(), model, Processes(size=2))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    use_own_gpu(ALONE)
    with pytest.raises(InputError, match="2 processes on a machine with 1 GPUs: start at most 1"):
        use_own_gpu(Processes(size=2, local_size=2))


def test_only_the_first_process_writes(tmp_path, config, store):
    chosen = config(tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    opened, folder = open_store(store), RunFolder(tmp_path / "run")
    second = Processes(rank=1, size=2)
    training = prepare(chosen, folder, opened, CPU, second)
    tracker = start_tracking(training, opened, resume=False)
    assert tracker.client is None
    module._save(training, folder.last)
    assert list(tmp_path.iterdir()) == []


# What follows starts real processes. Under torchrun, which is the one that ends the others, they
# import torch first, ten seconds a test; the rest begin as copies of this one.
forked = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Torchrun:
    """The real command under torchrun, its output in files."""

    def __init__(self, folder: Path, *arguments, size=2):
        folder.mkdir(exist_ok=True)
        self.out, self.err = folder / "stdout", folder / "stderr"
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", str(size), "-m", "bilevel_apps.cli.train"]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*words, *map(str, arguments)],
                stdout=out,
                stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def worker(self, rank):
        """Return the number of a process, read from the system."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(entry) == self.process.pid:
                environ = (entry / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in environ:
                    return int(entry.name)
        raise AssertionError(rank)

    def wait_for(self, path):
        while self.process.poll() is None and not path.exists():
            time.sleep(0.01)

    def end(self, seconds=120):
        """Return the status, and the lines of errors."""
        try:
            status = self.process.wait(seconds)
        finally:
            self.process.kill()
        lines = self.err.read_text().splitlines()
        return status, [line for line in lines if line.startswith("error:")]

    def statuses(self):
        """Return those of the processes that failed, as torchrun lists them."""
        return [int(code) for code in re.findall(r"exitcode  : (-?\d+)", self.err.read_text())]


def _parent(entry):
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.fixture
def file(tmp_path, settings):
    """Write a configuration; four episodes a hyper-iteration."""

    def make(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings(**({"train__meta_batch": 4} | changes))))
        return path

    return make


def assert_near(folder, expected):
    """Whether two runs came to the same, to the rounding of float32.

    The weights as one vector: a bias that began at zero three steps ago has a larger error.
    """
    found, whole = (load_checkpoint(path / "last.safetensors") for path in (folder, expected))
    assert found.record["step"] == whole.record["step"]
    names = {name for name in whole.tensors if name.startswith("model.")}
    averages = {name for name in names if "running" in name}
    assert 0 < len(averages) < len(names)
    for group in (names - averages, *({name} for name in averages)):
        its, other = (
            torch.cat([run.tensors[name].flatten() for name in sorted(group)])
            for run in (found, whole)
        )
        assert (its - other).norm() <= 1e-6 * other.norm(), group


@pytest.mark.process
def test_two_processes_come_to_what_one_comes_to(tmp_path, config, file):
    changes = {"train__steps": 3, "model__filters": 16, "train__meta_batch": 4}
    folder, whole = tmp_path / "two", tmp_path / "one"
    train(config(**changes), whole, resume=False)
    run = Torchrun(tmp_path / "log", file(**changes), "--out", folder)
    assert run.end() == (0, [])
    assert_near(folder, whole)
    assert load_checkpoint(folder / "last.safetensors").record["environment"]["processes"] == 2
    assert run.err.read_text().count("hyper-iteration 3: validation accuracy") == 1
    assert run.out.read_text().count("evaluate with:") == 1
    assert "warning" not in run.err.read_text()


@forked
@pytest.mark.process
def test_begun_alone_and_resumed_by_two(tmp_path, config, file, train_killed):
    changes = {"train__steps": 4, "model__filters": 16, "train__meta_batch": 4}
    folder, whole = tmp_path / "run", tmp_path / "whole"
    train(config(**changes), whole, resume=False)
    train_killed(config(**changes), folder, 2)
    assert load_checkpoint(folder / "last.safetensors").record["step"] == 2
    run = run_together(tmp_path / "log", "--out", folder, "--resume")
    assert run.statuses == [0, 0], run.said
    assert run.said.count("resuming with processes 1 → 2") == 1
    assert_near(folder, whole)


@pytest.mark.process
def test_a_signal_to_one_stops_all_and_one_goes_on(tmp_path, file, train_killed, capsys):
    folder = tmp_path / "run"
    changes = {"train__steps": 10**6, "train__checkpoint_every": 1, "train__validate_every": 10**6}
    run = Torchrun(tmp_path / "log", file(**changes), "--out", folder)
    run.wait_for(folder / "last.safetensors")
    os.kill(run.worker(1), signal.SIGTERM)
    assert run.end() == (1, [])
    assert run.statuses() == [130, 130]
    stopped = load_checkpoint(folder / "last.safetensors").record["step"]
    assert f"stopped at hyper-iteration {stopped}; continue" in run.err.read_text()
    capsys.readouterr()
    train_killed(RunFolder(folder).load_config(), folder, stopped + 1, resume=True)
    assert load_checkpoint(folder / "last.safetensors").record["step"] == stopped + 1
    assert "resuming with processes 2 → 1" in capsys.readouterr().err


WITH_A_THREAD = """
import atexit, os, sys

class Late:
    '''What a thread of gloo does at times: it needs the interpreter while that is torn down.'''

    def __del__(self, abort=os.abort):
        abort()

sys.late = Late()
atexit.register(print, "handlers run", file=sys.stderr)
"""


@pytest.mark.process
@pytest.mark.parametrize(("filters", "status"), [(0, 2), (4, 130)])
def test_a_process_that_ends_early_is_not_torn_down(tmp_path, file, monkeypatch, filters, status):
    plugin = tmp_path / "late.py"
    plugin.write_text(WITH_A_THREAD)
    monkeypatch.setenv("BILEVEL_IMPORT", str(plugin))
    folder = tmp_path / "run"
    changes = {"train__steps": 10**6, "train__checkpoint_every": 1, "model__filters": filters}
    run = Torchrun(tmp_path / "log", file(**changes), "--out", folder)
    if filters:
        run.wait_for(folder / "last.safetensors")
        os.kill(run.worker(0), signal.SIGTERM)
    run.end()
    assert run.statuses() == [status, status]
    assert run.err.read_text().count("handlers run") == 1  # the other one is silent


GONE = "error: another process of the run ended or cannot be reached ("


@pytest.mark.process
def test_a_killed_process_ends_the_others_with_one_line(tmp_path, file):
    folder = tmp_path / "run"
    changes = {"train__steps": 10**6, "train__checkpoint_every": 1}
    run = Torchrun(tmp_path / "log", file(**changes), "--out", folder)
    run.wait_for(folder / "last.safetensors")
    os.kill(run.worker(0), signal.SIGKILL)
    status, errors = run.end()
    assert status == 1
    (line,) = errors  # its own end: torchrun would kill it after thirty seconds, without a word
    assert line.startswith(GONE)
    assert line.endswith("with --resume to continue from the last checkpoint")
    assert sorted(run.statuses()) == [-signal.SIGKILL, 1]
    assert load_checkpoint(folder / "last.safetensors").record["step"] >= 1


@forked
@pytest.mark.process
def test_the_first_process_speaks_of_another_that_was_killed(tmp_path, file):
    folder = tmp_path / "run"
    changes = {"train__steps": 10**6, "train__checkpoint_every": 1}

    def kill(children):
        while children[0].alive() and not (folder / "last.safetensors").exists():
            time.sleep(0.01)
        os.kill(children[1].process, signal.SIGKILL)

    arguments = (file(**changes), "--out", folder)
    run = run_together(tmp_path / "log", *arguments, meanwhile=kill)
    assert run.statuses == [1, -signal.SIGKILL]
    (line,) = run.errors
    assert line.startswith(GONE)


@pytest.mark.process
def test_a_refusal_is_said_once_and_all_end_alike(tmp_path, file):
    run = Torchrun(tmp_path / "log", file(train__meta_batch=3), "--out", tmp_path / "run")
    status, errors = run.end()
    assert status == 1  # torchrun's own
    (line,) = errors
    assert line.startswith("error: train.meta_batch=3: ")
    assert run.statuses() == [2, 2]
    assert not (tmp_path / "run").exists()


@forked
@pytest.mark.process
def test_a_refusal_before_they_meet_is_said_once_too(tmp_path, file):
    run = run_together(tmp_path / "log", file(train__leer=3), "--out", tmp_path / "run")
    assert run.statuses == [2, 2]
    (line,) = run.errors
    assert "config.yaml: unknown key train.leer" in line
    assert not (tmp_path / "run").exists()


@forked
@pytest.mark.process
def test_what_the_first_process_refuses_ends_all(tmp_path, file):
    """Only the first process tries to take the folder."""
    folder = tmp_path / "run"
    with RunFolder(folder).exclusive():
        run = run_together(tmp_path / "log", file(), "--out", folder)
    assert run.statuses == [2, 2]
    (line,) = run.errors
    assert line.startswith(f"error: {folder}: another process is at work in this folder")


@forked
@pytest.mark.process
def test_a_process_that_fails_alone_says_why(tmp_path, file):
    """The others notice that it has gone, and leave the word to it."""
    changes = {"inner__lr": 1e38, "model__unit_length": False}
    run = run_together(tmp_path / "log", file(**changes), "--out", tmp_path / "run")
    assert 1 in run.statuses
    (line,) = run.errors
    assert "after hyper-iteration 0: " in line
    assert "there is no checkpoint yet" in line
