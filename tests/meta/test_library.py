"""The library as its README shows it, on built-in characters: train, evaluate, keep, use."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bilevel_data import SourceData, SourceSplit, load_source, open_store, write_store
from bilevel_meta import HyperRepresentation, evaluate
from bilevel_models import create_model

SNIPPET = """
import sys
import torch
from bilevel_data import open_store
from bilevel_meta import HyperRepresentation, evaluate

store = open_store({store!r})
train = store.episodes("train", way=5, shot=1, query=5, rotations=True, seed=0)
test = store.episodes("test", way=5, shot=1, query=5, seed=0)
learner = HyperRepresentation(
    "omniglot-net", image_shape=store.image_shape, norm="ghost", steps=5, step_size=0.1
)
optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
for batch in train.batches(8, steps=3):
    optimizer.zero_grad()
    learner.loss(batch).backward()
    optimizer.step()
score = evaluate(learner, test, episodes=20)
print(score)
learner.save({out!r})
images, labels = store.load("test").images[::4], [str(k // 5) for k in range(30)]
print(learner.fit(images, labels).predict(store.load("test").images[:3]))
unwanted = {{"mlflow", "typer", "rich", "pydantic", "matplotlib", "sklearn", "scipy"}}
assert not unwanted & sys.modules.keys(), unwanted & sys.modules.keys()
"""


def small(split, classes, images=20):
    """The first classes of a split of the glyphs, at half their size."""
    pictures = []
    for found in split.images:
        halves = found[:images].reshape(images, 14, 2, 14, 2, 1).astype(np.uint16).sum((2, 4)) // 4
        pictures.append(halves.astype(np.uint8))
        if len(pictures) == classes:
            break
    return SourceSplit(
        name=split.name,
        class_names=split.class_names[:classes],
        class_sizes=(images,) * classes,
        image_shape=(14, 14, 1),
        images=pictures,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    glyphs = load_source("glyphs")
    counts = {"train": 12, "val": 5, "test": 6}
    path = tmp_path_factory.mktemp("store") / "glyphs.h5"
    source = SourceData(
        name="glyphs",
        licence=glyphs.licence,
        source=glyphs.source,
        preprocessing=glyphs.preprocessing,
        rotations_are_classes=True,
        splits=tuple(small(split, counts[split.name]) for split in glyphs.splits),
    )
    write_store(path, source)
    return open_store(path)


def backbone(image_shape):
    return create_model("omniglot-net", channels=1, image_size=image_shape[0], filters=8)


@pytest.fixture
def learner(store):
    torch.manual_seed(0)
    return HyperRepresentation(backbone(store.image_shape), steps=3)


@pytest.mark.process
def test_the_snippet_runs_and_brings_none_of_what_commands_need(store, tmp_path):
    code = SNIPPET.format(store=str(store.path), out=str(tmp_path / "glyphs.safetensors"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    score, predicted = done.stdout.splitlines()
    assert score.endswith("%")
    assert len(predicted.split(",")) == 3
    assert (tmp_path / "glyphs.safetensors").stat().st_size > 0


def test_training_helps(store, learner):
    """On classes that it is trained on, where little training shows."""
    train = store.episodes("train", way=5, shot=1, query=5, rotations=True)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    before = evaluate(learner, train, episodes=30).accuracy
    for batch in train.batches(4, steps=25):
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
    assert evaluate(learner, train, episodes=30).accuracy > before + 0.03


def test_a_batch_of_pixels_is_what_its_tensors_are(store, learner):
    batch = store.episodes("train", query=5).batch(0, 2)
    first = learner.loss(batch)
    assert torch.equal(first, learner.loss(learner.take(batch)))
    assert torch.equal(first, learner(batch))


def test_evaluation_leaves_the_learner_as_it_was(store, learner):
    test = store.episodes("test", query=5)
    state = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    first, second = (evaluate(learner, test, episodes=10) for _ in range(2))
    assert first == second
    assert learner.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in learner.state_dict().items())
    with pytest.raises(ValueError, match="episodes=1"):
        evaluate(learner, test, episodes=1)


def test_batches_are_those_of_the_sampler(store):
    sampler = store.episodes("train", query=5, seed=3)
    with sampler.batches(2, steps=2, first_step=1) as batches:
        found = list(batches)
    assert len(found) == 2
    assert np.array_equal(found[1].support, sampler.batch(4, 2).support)


def test_saved_weights_are_the_same_learner(store, learner, tmp_path):
    learner.save(tmp_path / "a.safetensors")
    torch.manual_seed(1)
    other = HyperRepresentation(backbone(store.image_shape), steps=3)
    other.load(tmp_path / "a.safetensors")
    test = store.episodes("test", query=5)
    assert evaluate(other, test, episodes=10) == evaluate(learner, test, episodes=10)
    wider = HyperRepresentation("c4l", image_shape=(32, 32, 1))
    with pytest.raises(ValueError, match="not the weights of this HyperRepresentation"):
        wider.load(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"b\.safetensors"):
        other.load(tmp_path / "b.safetensors")


def test_a_fitted_classifier_gives_the_names_that_it_was_given(store, learner):
    split = store.load("test")
    shown = np.concatenate([split.images[20 * k : 20 * k + 3] for k in range(3)])
    names = [name for name in "zxy" for _ in range(3)]
    learner.steps = 500
    fitted = learner.fit(shown, names)
    assert fitted.classes == ("x", "y", "z")
    assert fitted.predict(shown) == names
    others = split.images[3:20]
    together = fitted.probabilities(others)
    torch.testing.assert_close(together.sum(dim=1), torch.ones(17))
    torch.testing.assert_close(together[:1], fitted.probabilities(others[:1]))
    tensors = torch.tensor(others).movedim(-1, 1) / 255
    torch.testing.assert_close(fitted.probabilities(tensors), together)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 14, 14, 1), np.uint8), ["a", "a"]),
        (np.zeros((2, 14, 14, 1), np.uint8), ["a"]),
        (np.zeros((2, 14, 14, 1)), ["a", "b"]),
        (torch.zeros(2, 14, 14), ["a", "b"]),
    ],
    ids=["one class", "a label missing", "pixels of another type", "no channels"],
)
def test_what_cannot_be_fitted_is_refused(learner, images, labels):
    with pytest.raises(ValueError, match="give"):
        learner.fit(images, labels)


@pytest.mark.parametrize("shape", [None, (14, 16, 1)])
def test_a_named_backbone_needs_square_images(shape):
    with pytest.raises(ValueError, match="image_shape"):
        HyperRepresentation("omniglot-net", image_shape=shape)
