"""Several stores in one training: each meta-batch is drawn from one of them, by weight."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bilevel_apps.errors import InputError
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.processes import Processes
from bilevel_apps.training.data_parallel import Shard
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare, resolve
from bilevel_data import DataError, Preprocessing, open_store, write_store

ALONE, CPU = Processes(), torch.device("cpu")
LAST = "last.safetensors"


@pytest.fixture(scope="module")
def others(make_store):
    """Two more stores, of other images."""
    return [str(make_store(seed=seed)) for seed in (1, 2)]


def prepared(config, folder):
    store = open_store(config.data)
    settled = resolve(config, store, CPU, ALONE)
    return prepare(settled, RunFolder(folder), store, CPU, ALONE)


def drawn(config, folder, steps):
    made, each = prepared(config, folder), config.train.meta_batch
    sampler = made.batches()
    return [sampler.batch(step * each, each).support for step in range(steps)]


def hashes(path):
    return open_store(path).manifest.splits["train"].sha256


def test_each_meta_batch_is_of_one_store_by_weight(tmp_path, config, store, others):
    steps, mix = 400, dict(zip(others, (2.0, 1.0), strict=True))
    mixed = drawn(config(train__mix=mix), tmp_path, steps)
    alone = [drawn(config(data=str(path)), tmp_path, steps) for path in (store, *others)]
    from_ = Counter()
    for step, batch in enumerate(mixed):
        (which,) = (i for i, own in enumerate(alone) if (own[step] == batch).all())
        from_[which] += 1
    for which, share in enumerate((0.25, 0.5, 0.25)):  # four standard deviations of a share
        assert abs(from_[which] / steps - share) < 4 * (share * (1 - share) / steps) ** 0.5
    made = prepared(config(train__mix=mix), tmp_path)
    assert (made.val_episodes.batch(0, 2).query == _validation(config, tmp_path)).all()


def _validation(config, folder):
    return prepared(config(), folder).val_episodes.batch(0, 2).query


def test_order_and_places_decide_nothing(tmp_path, config, others):
    a, b = others
    copy = tmp_path / "0.h5"
    copy.write_bytes(Path(b).read_bytes())
    first = drawn(config(train__mix={a: 2.0, b: 1.0}), tmp_path, 20)
    second = drawn(config(train__mix={str(copy): 1.0, a: 2.0}), tmp_path, 20)
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_ranges_and_processes(tmp_path, config, others):
    chosen = config(train__mix={others[0]: 1.0}, train__shot=[1, 4], train__meta_batch=4)
    made = prepared(chosen, tmp_path)
    for step in range(6):
        whole = made.batches().batch(4 * step, 4)
        for rank in range(2):
            shard = Shard(whole=made.train_episodes, processes=Processes(rank=rank, size=2))
            part = shard.batch(4 * step, 4)
            assert (part.support == whole.support[2 * rank : 2 * rank + 2]).all()


def test_resumed_to_the_bit_wherever_the_stores_are(tmp_path, config, others, train_killed):
    mix = {others[0]: 2.0}
    whole = tmp_path / "whole"
    train(config(train__mix=mix), whole, resume=False)
    made = load_checkpoint(whole / LAST)
    assert made.record["environment"]["mix"] == {hashes(others[0]): 2.0}
    assert yaml.safe_load((whole / "config.yaml").read_text())["train"]["mix"] == mix

    folder = tmp_path / "cut"
    train_killed(config(train__mix=mix), folder, 2)
    moved = tmp_path / "moved.h5"
    moved.write_bytes(Path(others[0]).read_bytes())
    given = config(train__mix={str(moved): 2.0})
    train(RunFolder(folder).continued(given), folder, resume=True)
    tensors = load_checkpoint(folder / LAST).tensors
    assert tensors.keys() == made.tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in made.tensors.items())
    for other in ({str(moved): 1.0}, {others[1]: 2.0}, {}):
        changed = RunFolder(folder).continued(config(train__mix=other))
        with pytest.raises(InputError, match=r"train\.mix"):
            train(changed, folder, resume=True)


def test_a_run_of_one_store_says_nothing_of_others(trained):
    assert "mix" not in load_checkpoint(trained / LAST).record["environment"]


def test_stores_that_do_not_agree_are_refused(tmp_path, config, store, make_store, make_source):
    def made(name, **changes):
        path = tmp_path / f"{name}.h5"
        write_store(path, replace(make_source(seed=7), **changes))
        return path

    bright, dark = (Preprocessing(size=(16, 16), channels=1, ink=ink) for ink in ("bright", "dark"))
    first = made("first", preprocessing=bright)
    cases = [
        ({"train__mix": {tmp_path / "none.h5": 1.0}}, "none.h5"),
        ({"train__mix": {make_store(seed=3, size=20): 1.0}}, r"\(20, 20, 1\)"),
        ({"train__mix": {make_store(seed=3, classes={"val": 6}): 1.0}}, "'train'"),
        ({"train__mix": {store: 1.0}}, "once"),
        ({"train__mix": {make_store(seed=3): 1.0}, "method": "baseline"}, "baseline"),
        ({"train__mix": {made("turned", rotations_are_classes=True): 1.0}}, r"episode\.rotations"),
        ({"train__mix": {made("dark", preprocessing=dark): 1.0}, "data": str(first)}, "dark ink"),
    ]
    for changes, named in cases:
        mix = {str(path): weight for path, weight in changes["train__mix"].items()}
        with pytest.raises((InputError, DataError), match=named):
            prepared(config(**changes | {"train__mix": mix}), tmp_path / "run")


def test_a_class_called_like_one_to_be_tested_on_is_told(tmp_path, config, make_source, capsys):
    data = make_source(seed=9)
    names = tuple(f"test-{number}" for number in range(12))
    renamed = replace(data.splits[0], class_names=names)
    path = tmp_path / "named.h5"
    write_store(path, replace(data, splits=(renamed,)))
    prepared(config(train__mix={str(path): 1.0}), tmp_path / "run")
    assert "6 of its training classes" in capsys.readouterr().err


def test_from_the_command_line(tmp_path, settings, store, others, command):
    file, folder = tmp_path / "settings.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(settings(train__steps=2)))
    data = ["--data", f"{store}=2", "--data", others[0], "--data", f"{others[1]}=1"]
    assert command("train", str(file), *data, "--out", str(folder)).status == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"] == str(store)
    assert saved["train"]["mix"] == dict.fromkeys(others, 0.5)
    for wrong in (f"{store}=0", f"{store}=-1", f"{store}=inf"):
        done = command("train", str(file), "--data", wrong, "--out", str(tmp_path / "other"))
        assert done.status == 2
        assert f"--data {wrong}" in done.error
    twice = ["--data", str(store), "--data", f"{store}=3"]
    done = command("train", str(file), *twice, "--out", str(tmp_path / "other"))
    assert f"--data {store}=3" in done.error
    assert not (tmp_path / "other").exists()
