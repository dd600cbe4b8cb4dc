"""Heads for images that a person brings: inductive, of any classes, behind scikit-learn's API."""

import copy
import dataclasses
import pickle
import shutil

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

from bilevel_apps.errors import InputError
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.checkpoint import load_checkpoint, save_checkpoint
from bilevel_apps.runs.chosen_inner import ChosenInner, save_choice
from bilevel_apps.runs.load import load_trained
from bilevel_data import open_store
from bilevel_meta.adapt import CHUNK, learner_of
from bilevel_meta.methods.hyper_representation import InnerLoop
from bilevel_models import heads

SHAPE = (16, 16, 1)
NORMS = ["ghost", "batch", "support", "episode"]


@pytest.fixture(scope="module")
def images(store):
    """Test images (6, 20, 16, 16, 1) by class."""
    return open_store(store).load("test").images.reshape(6, 20, *SHAPE)


@pytest.fixture
def learner(config):
    """A learner with weights that were never trained and, where they are used, other averages."""

    def make(**changes):
        task = make_learner(config(**changes), SHAPE, torch.device("cpu"))
        for name, buffer in task.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(-0.1)
        return learner_of(task)

    return make


def drawn(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, *SHAPE[:2], generator=generator)


def test_the_head_is_that_of_plain_gradient_descent(learner):
    # Classes of one, two and four images.
    labels, support, query = torch.tensor([0, 1, 1, 2, 2, 2, 2]), drawn(7), drawn(4, 1)
    found = learner(inner__steps=7)
    h, q = found.features(support, query)
    w = torch.zeros(h.shape[1], 3, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(7):
        loss = torch.nn.functional.cross_entropy(found.scale * h @ w + b, labels)
        steps = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():
            for parameter, step in zip((w, b), steps, strict=True):
                parameter -= found.step_size * step
    expected = (found.scale * q @ w + b).softmax(dim=-1).detach()
    head = found.adapt(support, labels, 3)
    torch.testing.assert_close(head.probabilities(query), expected, rtol=0, atol=1e-12)


def test_it_is_the_head_that_evaluation_scores(trained, images):
    run = load_trained(trained, "cpu")
    support, query = images[:5, 0], images[:5, 1:4].reshape(-1, *SHAPE)
    model = FewShotClassifier(trained).fit(support, np.arange(5))
    s, q = (torch.from_numpy(x / 255).float().movedim(-1, -3)[None] for x in (support, query))
    with torch.no_grad():
        h_s, h_q = run.learner.encoder(s, q, training=False)
    scale = run.learner.log_scale.detach().exp()
    head = heads.descend(
        h_s,
        torch.eye(5)[None],
        steps=run.learner.steps,
        step_size=run.learner.log_lr.detach().exp(),
        scale=scale,
    )
    expected = heads.logits(head, h_q)[0].softmax(dim=-1).numpy()
    np.testing.assert_allclose(model.predict_proba(query), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_query_alone_gets_the_answer_that_it_gets_among_others(learner, norm):
    head = learner(model__norm=norm).adapt(drawn(6), torch.arange(6) % 3, 3)
    query = drawn(CHUNK + 3, 1)
    together = head.probabilities(query)
    alone = torch.cat([head.probabilities(one[None]) for one in query])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.sum(dim=-1), torch.ones_like(together[:, 0]))
    assert together.std(dim=0).min() > 1e-4  # the queries do differ


def test_transductive_runs_use_the_statistics_of_the_support_images(learner):
    support, query = drawn(6), drawn(5, 1)
    labels = torch.arange(6) % 3
    found, other = (learner(model__norm=norm) for norm in ("episode", "support"))
    torch.testing.assert_close(
        found.adapt(support, labels, 3).probabilities(query),
        other.adapt(support, labels, 3).probabilities(query),
        rtol=0,
        atol=0,
    )


def test_convolutions_run_in_float32(learner):
    assert not learner(precision="bfloat16").encoder.bfloat16


def test_the_precision_is_that_of_the_weights(learner):
    single = learner()
    backbone = copy.deepcopy(single.encoder.backbone).double()
    double = dataclasses.replace(
        single, encoder=dataclasses.replace(single.encoder, backbone=backbone)
    )
    few, many = (one.features(drawn(4), drawn(5, 1)) for one in (single, double))
    for a, b in zip(few, many, strict=True):
        assert a.dtype == b.dtype == torch.float64
        assert 0 < (a - b).abs().max() < 1e-5


def test_a_head_that_diverges_is_refused(learner):
    wild = dataclasses.replace(learner(), step_size=1e300, scale=1e10)
    with pytest.raises(heads.HeadDivergenceError, match="not finite after T = 5"):
        wild.adapt(drawn(4), torch.arange(4) % 2, 2)


def test_forms_of_images(trained, images):
    support, query = images[:, 0], images[:, 1]
    model = FewShotClassifier(trained).fit(support, list("abcdef"))
    expected = model.predict_proba(query)
    assert model.n_features_in_ == 256
    for form in (
        query[..., 0],
        query.reshape(6, -1),
        query.reshape(6, -1).astype(np.int64),
        list(query),
        query.reshape(6, -1).tolist(),
    ):
        np.testing.assert_array_equal(model.predict_proba(form), expected)
    np.testing.assert_allclose(model.predict_proba(query / 255), expected, rtol=0, atol=1e-6)
    other = FewShotClassifier(trained).fit(support / 255, list("abcdef"))
    np.testing.assert_allclose(other.predict_proba(query), expected, rtol=0, atol=1e-6)


def test_steps_and_step_size_of_ones_own(trained, images):
    x, y = images[:3, :4].reshape(-1, *SHAPE), np.repeat(np.arange(3), 4)
    queries = images[:3, 4:].reshape(-1, *SHAPE)
    own = FewShotClassifier(trained).fit(x, y)
    run = load_trained(trained, "cpu").learner.inner
    same = FewShotClassifier(trained, steps=run.steps, step_size=run.lr).fit(x, y)
    assert np.array_equal(own.predict_proba(queries), same.predict_proba(queries))
    for changed in ({"steps": run.steps + 5}, {"step_size": run.lr / 2}):
        other = FewShotClassifier(trained, **changed).fit(x, y)
        assert not np.allclose(own.predict_proba(queries), other.predict_proba(queries))
    grid, scoring = {"steps": [0, 5]}, "neg_log_loss"
    search = GridSearchCV(FewShotClassifier(trained), grid, cv=2, scoring=scoring).fit(x, y)
    without, with_steps = search.cv_results_["mean_test_score"]
    assert without == pytest.approx(-np.log(3))  # without a step every class is as probable
    assert with_steps != without
    FewShotClassifier(trained, steps=np.int64(3), step_size=np.float32(0.1)).fit(x, y)
    for bad in (-1, 2.5, "3"):
        with pytest.raises(ValueError, match=r"steps=.*: expected a whole number from 0"):
            FewShotClassifier(trained, steps=bad).fit(x, y)
    for bad in (-1.0, float("nan"), float("inf"), "fast"):
        with pytest.raises(ValueError, match=r"step_size=.*: expected a number from 0"):
            FewShotClassifier(trained, step_size=bad).fit(x, y)


def test_features_over_shifts_are_the_mean_of_nine(trained, images):
    x, y = images[:, :2].reshape(-1, *SHAPE), np.repeat(range(6), 2)
    plain, shifted = (FewShotClassifier(trained, shifts=d).fit(x, y) for d in (0, 1))
    found = shifted.head_.learner.encoder.backbone
    assert found.pixels == 1
    assert plain.head_.learner.encoder.backbone.state_dict().keys() == (
        found.network.state_dict().keys()
    )
    queries = images[:, 2]
    both = [model.predict_proba(queries) for model in (plain, shifted)]
    assert not np.allclose(*both)
    # Still inductive: alone as among others.
    assert np.allclose(shifted.predict_proba(queries[:1]), both[1][:1], atol=1e-6)
    with pytest.raises(ValueError, match=r"shifts=-1: expected a whole number from 0"):
        FewShotClassifier(trained, shifts=-1).fit(x, y)


def test_tensors_are_images_too(trained, images):
    x, y = images[:3, :4].reshape(-1, *SHAPE), np.repeat(np.arange(3), 4)
    own = FewShotClassifier(trained).fit(x, y).predict_proba(x)
    tensors = FewShotClassifier(trained).fit(torch.as_tensor(x), torch.as_tensor(y))
    assert np.array_equal(tensors.predict_proba(torch.as_tensor(x)), own)
    graded = torch.as_tensor(x / 255).requires_grad_()
    assert np.allclose(tensors.predict_proba(graded), own, atol=1e-6)
    with pytest.raises(ValueError, match=r"one image alone is X\[None\]"):
        tensors.predict(x[0])
    assert tensors.predict(x[0][None]).shape == (1,)


def test_labels_and_their_order(trained, images):
    names = np.array(["pear", "apple", "fig"])
    X, y = images[:3, :4].reshape(-1, *SHAPE), np.repeat(names, 4)
    model = FewShotClassifier(trained).fit(X, y)
    assert model.classes_.tolist() == ["apple", "fig", "pear"]
    query = images[:3, 4:].reshape(-1, *SHAPE)
    probabilities = model.predict_proba(query)
    assert (model.predict(query) == model.classes_[probabilities.argmax(axis=1)]).all()
    truth = np.repeat(names, 16)
    assert model.score(query, truth) == (model.predict(query) == truth).mean()
    # The same classes by numbers in another order: the columns follow their labels.
    numbered = FewShotClassifier(trained).fit(X, np.repeat([1, 3, 2], 4))
    pear, apple, fig = numbered.predict_proba(query)[:, [0, 2, 1]].T
    np.testing.assert_allclose(probabilities, np.stack([apple, fig, pear], axis=1), atol=1e-12)
    assert probabilities.std(axis=1).min() > 1e-6


def test_parameters_clones_and_copies(trained, images, tmp_path):
    model = FewShotClassifier(trained, device="cpu")
    given = {"run": trained, "device": "cpu"}
    assert model.get_params() == {**given, "steps": None, "step_size": None, "shifts": 0}
    assert clone(model).set_params(run="elsewhere").run == "elsewhere"
    model.fit(images[:, 0], range(6))
    again = pickle.loads(pickle.dumps(model))
    expected = model.predict_proba(images[:, 1])
    np.testing.assert_array_equal(again.predict_proba(images[:, 1]), expected)
    alone = tmp_path / "one.safetensors"
    alone.write_bytes((trained / "best.safetensors").read_bytes())
    by_itself = FewShotClassifier(str(alone)).fit(images[:, 0], range(6))
    np.testing.assert_array_equal(by_itself.predict_proba(images[:, 1]), expected)


def test_the_programs_threads_are_its_own(trained, images):
    torch.set_num_threads(2)
    FewShotClassifier(trained).fit(images[:, 0], range(6))
    assert torch.get_num_threads() == 2


REFUSED = [
    (lambda X: X[:, :8], r"\(8, 16, 1\), but the run was trained on \(16, 16, 1\)"),
    (lambda X: np.repeat(X, 3, axis=-1), r"\(16, 16, 3\), but"),
    (lambda X: X.reshape(6, -1)[:, :9], "X has 9 features, but the run .* = 256"),
    (lambda X: X.astype(float), r"values from 0\.0 to 2\d\d\.0: give pixels of 0 … 255 as whole"),
    (lambda X: X.astype(int) - 9, "values from -9 to 2"),
    (lambda X: X[:0], "minimum of 1 is required"),
]


@pytest.mark.parametrize(("spoil", "says"), REFUSED, ids=range(len(REFUSED)))
def test_images_that_do_not_fit(trained, images, spoil, says):
    X = spoil(images[:, 0])
    with pytest.raises(ValueError, match=says):
        FewShotClassifier(trained).fit(X, np.arange(len(X)))


def test_a_checkpoint_has_the_choice_beside_it_if_that_is_its_own(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    best, last = folder / "best.safetensors", folder / "last.safetensors"
    choice = ChosenInner(9, 0.02)
    save_choice(folder, choice, {"checkpoint_sha256": load_trained(best, "cpu").sha256})
    expected = InnerLoop(9, pytest.approx(0.02, rel=1e-6))
    assert [load_trained(path, "cpu").learner.inner for path in (folder, best)] == [expected] * 2
    checkpoint = load_checkpoint(best)
    other = {**checkpoint.record, "step": 1}
    save_checkpoint(last, dataclasses.replace(checkpoint, record=other))
    run = load_trained(last, "cpu")  # it was chosen for the other one, which is no news
    assert run.learner.inner == run.trained_inner
    assert capsys.readouterr().err == ""


def test_other_refusals(trained, images, tmp_path):
    with pytest.raises(ValueError, match="y has one class, 7: give images of two or more"):
        FewShotClassifier(trained).fit(images[:, 0], [7] * 6)
    with pytest.raises(InputError, match="no run here"):
        FewShotClassifier(tmp_path).fit(images[:, 0], range(6))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((trained / "best.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        FewShotClassifier(broken).fit(images[:, 0], range(6))


def test_a_transductive_run_costs_a_warning(tmp_path, config, images):
    from bilevel_apps.training.loop import train

    train(config(model__norm="episode", train__steps=2), tmp_path / "run", resume=False)
    with pytest.warns(UserWarning, match="transductive accuracy will not be reached"):
        FewShotClassifier(tmp_path / "run").fit(images[:, 0], range(6))


class AnyColumns(FewShotClassifier):
    """Rows of any length, drawn as stripes: scikit-learn's checks bring no images of 16×16."""

    def _images(self, rows):
        pixels = 1 / (1 + np.exp(-np.clip(rows, -50, 50)))
        return super()._images(pixels[:, np.arange(256) * rows.shape[1] // 256])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = False
        # Stripes are not what the representation was trained on, and it was hardly trained.
        tags.classifier_tags.poor_score = True
        return tags


# What brings rows of 1 to 10 columns, and so never comes to what it checks: `AnyColumns` does.
OTHER_COLUMNS = [
    "fit_score_takes_y",
    "estimators_overwrite_params",
    "dont_overwrite_parameters",
    "estimators_fit_returns_self",
    "readonly_memmap_input",
    "n_features_in_after_fitting",
    "positive_only_tag_during_fit",
    "estimators_dtypes",
    "dtype_object",
    "pipeline_consistency",
    "estimators_nan_inf",
    "estimators_pickle",
    "f_contiguous_array_estimator",
    "classifier_data_not_an_array",
    "classifiers_classes",
    "classifiers_train",
    "supervised_y_2d",
    "methods_sample_order_invariance",
    "methods_subset_invariance",
    "fit2d_1feature",
    "dict_unchanged",
    "fit_idempotent",
    "fit_check_is_fitted",
    "n_features_in",
    "fit2d_predict1d",
]


@pytest.mark.parametrize(
    ("kind", "left_out"), [(AnyColumns, []), (FewShotClassifier, OTHER_COLUMNS)]
)
def test_estimator_checks(trained, kind, left_out):
    reason = "it brings rows that are no images of 16×16"
    found = check_estimator(
        kind(trained, device="cpu"),
        expected_failed_checks={f"check_{name}": reason for name in left_out},
        on_skip=None,  # of array libraries, where SCIPY_ARRAY_API is not set
    )
    statuses = [check["status"] for check in found]
    assert statuses.count("passed") > 25
    assert statuses.count("failed") == 0
    failed = {check["check_name"] for check in found if check["status"] == "xfail"}
    assert failed <= {f"check_{name}" for name in left_out}
