"""A run that can be used: its best weights, and the configuration that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import torch

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import episode_sampler, make_learner, model_tensors, store_of
from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint
from bilevel_apps.runs.chosen_inner import ChosenInner, chosen_inner, solver_of
from bilevel_apps.runs.folder import RunFolder, moved_data
from bilevel_apps.runs.mixture import seen_preprocessing
from bilevel_apps.runs.pretrained import pretrained_checkpoint, pretrained_tag
from bilevel_apps.runs.record import read_record
from bilevel_apps.runs.weights import backbone_sha256
from bilevel_apps.system.hardware import choose_device, set_threads
from bilevel_data import (
    DataError,
    EpisodeSampler,
    ImageSplit,
    Preprocessing,
    Store,
    open_store,
)
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_meta.methods.hyper_representation import HyperRepresentation, InnerLoop, inner_of
from bilevel_meta.shifts import over_shifts
from bilevel_models import Precomputed

__all__ = [
    "TrainedRun",
    "differently_prepared",
    "load_run",
    "load_trained",
    "require_split",
    "run_of",
]

AS_TRAINED = ChosenInner()


@final
@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished or interrupted run.

    Attributes:
        config: what was run.
        learner: the representation and its inner problem, with the T and η that were chosen for it
            since, or else those of the training.
        trained_inner: those of the training, η as it was learned.
        path: the checkpoint, best or last, or `pretrained:TAG`.
        step: the hyper-iteration after which it was taken.
        sha256: of the checkpoint's file, as it was when it was read.
        image_shape: (height, width, channels) of the images.
        preprocessing: how the images were made, if the checkpoint says so.
        data: SHA-256 of the pixels of each split of the store that it was trained on.
        device: where the weights are.
        shifts: pixels by which images are moved to average their features; 0: they are not.
        features: SHA-256 of the weights behind the features that it takes; None: it takes pictures.
        calibrated: what fits its heads to their optimum was estimated anew after its training.
    """

    config: Config
    learner: Learner
    trained_inner: InnerLoop
    path: Path
    step: int
    sha256: str
    image_shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    data: Mapping[str, str]
    device: torch.device
    shifts: int = 0
    features: str | None = None
    calibrated: bool = False

    def over_shifts(self, pixels: int) -> TrainedRun:
        """Return the run with features averaged over shifts of an image by so many pixels.

        Raises:
            InputError: the method moves its whole network.
        """
        if pixels == 0:
            return self
        if not isinstance(self.learner, HeadLearner):
            raise InputError(
                f"`shifts`={pixels}: method={self.config.method} moves the whole network: it has "
                "no features to average: leave it out"
            )
        return replace(self, learner=over_shifts(self.learner, pixels), shifts=pixels)

    def for_store(self, store: Store) -> TrainedRun:
        """Return the run with a store's features in the place of its backbone, if it has some.

        Raises:
            InputError: features of another backbone, pictures for a run on features, or features
                for a run whose own depend on the episode.
        """
        given = store.manifest.features
        if given is None:
            if self.features is not None:
                raise InputError(
                    f"{store.path}: holds pictures, and the run learned from features: give those "
                    "that `bilevel-data features` makes of them, with the same weights "
                    f"({self.features[:12]}…)"
                )
            return self
        own = self.features
        if own is None and isinstance(self.learner, HeadLearner):
            own = backbone_sha256(self.learner.backbone)
        if own != given.weights_sha256:
            raise InputError(
                f"{store.path}: holds features of {given}, not of the run's backbone "
                f"({'it has none' if own is None else own[:12] + '…'}): give the store of the "
                "pictures, or train on the features with model.name=features"
            )
        if self.features is not None:
            return self
        learner = cast("HeadLearner", self.learner)
        if not learner.normalization.by_averages or self.shifts:
            why = "`shifts`" if self.shifts else f"norm={learner.normalization.value}"
            raise InputError(
                f"{store.path}: holds features of each picture by itself, which {why} changes: "
                "give the store of the pictures"
            )
        return replace(
            self,
            learner=learner.behind(Precomputed(learner.dim)),
            image_shape=store.image_shape,
            features=own,
        )

    def require_pictures(self, command: str) -> None:
        """Refuse what needs the backbone.

        Raises:
            InputError: the run learned from features.
        """
        if self.features is not None:
            raise InputError(
                f"{self.path}: learned from features, and {command} takes pictures: give the run "
                "or the weights that the features are of"
            )

    def require_shape(self, store: Store, found: tuple[int, ...]) -> None:
        """Refuse a store whose images have another shape, `found`, than those of the training.

        Raises:
            InputError: they have.
        """
        if found != self.image_shape:
            raise InputError(
                f"{store.path}: images of (height, width, channels) {found}, but the run was "
                f"trained on {self.image_shape}: give a store made the same way"
            )

    @property
    def representation(self) -> HyperRepresentation:
        """The learner, where heads of T steps are trained on it.

        Raises:
            InputError: it is of a method that classifies in another way.
        """
        if not isinstance(self.learner, HyperRepresentation):
            raise InputError(
                f"{self.path}: method={self.config.method} has no head of T steps, which this "
                "needs: give a run of hyper-representation or one of its variants"
            )
        return self.learner

    @property
    def inner(self) -> InnerLoop:
        """T and η of the task; see `inner_of`."""
        return inner_of(self.learner)

    def store(self, path: Path | None) -> Store:
        """Open another store, or the one that the run was trained on.

        Raises:
            InputError: no other is given, and its own is no longer there.
            bilevel_data.DataError: the store is unusable.
        """
        if path is not None or self.config.data is None:
            return store_of(path)
        found = moved_data(self.config.data, self.path.parent, self.is_own)
        if found is None:
            raise InputError(
                f"{self.config.data}: the run's store is no longer there: give it with "
                "`data`=FILE.h5"
            )
        return store_of(found)

    def is_own(self, path: Path) -> bool:
        """Say whether a file is a store of the images that the run was trained on."""
        try:
            splits = open_store(path).manifest.splits
        except DataError:
            return False
        return {name: info.sha256 for name, info in splits.items()} == dict(self.data)

    def counts_rotations(self, store: Store, split: str) -> bool:
        """Say whether rotated copies count: as for the run, but not where other images have none.

        Its own images are scored as it was trained, whatever their store says.
        """
        info = store.manifest.splits.get(split)
        own = info is not None and info.sha256 == self.data.get(split)
        return bool(self.config.episode.rotations) and (own or store.manifest.rotations_are_classes)

    def sampler(
        self,
        store: Store,
        split: str,
        *,
        seed: int,
        rotations: bool,
        way: int | None = None,
        shot: int | None = None,
        query: int | None = None,
        overlap: bool = False,
    ) -> EpisodeSampler:
        """Return episodes of the kind that the run was trained for, unless told otherwise.

        Whatever it was trained on, they overlap only where that is asked for.

        Raises:
            InputError: no such split, or its images are of another size, or too few.
        """
        require_split(store, split)
        self.require_shape(store, store.manifest.splits[split].image_shape)
        episode = self.config.episode
        spec = {
            "way": way or episode.way,
            "shot": shot or episode.shot,
            "query": query or episode.query,
        }
        return episode_sampler(
            store,
            split,
            spec,
            keys="`way`, `shot`, `query` or `split`",
            seed=seed,
            rotations=rotations,
            overlap=overlap,
        )


def require_split(store: Store, split: str, parameter: str = "split") -> None:
    """Refuse a split that a store does not have; `parameter` is what asks for it.

    Raises:
        InputError: there is none of this name.
    """
    if split not in store.splits:
        raise InputError(
            f"`{parameter}`={split}: {store.path} has none of this name: choose one of "
            f"{', '.join(store.splits)}"
        )


def differently_prepared(run: TrainedRun, store: Store, split: ImageSplit) -> str | None:
    """Return a line on how other images were prepared otherwise than the run's, if they were.

    Where a store does not say what ink its drawings have, their borders do.
    """
    if run.preprocessing is None or run.data.get(split.name) == split.sha256:
        return None
    found = seen_preprocessing(store, split).differences(run.preprocessing)
    if not found:
        return None
    remedy = "; prepare it again as the run's, such as with --option ink=bright for a folder"
    return (
        f"{store.path}: prepared otherwise than the images that the run learned from: "
        f"{', '.join(found)}: it may score worse for that{remedy}"
    )


def steps_beyond(run: TrainedRun, steps: Sequence[int | None], lr: object) -> str | None:
    """Return a line where heads take more steps than their learned step size was learned for.

    Args:
        run: the run.
        steps: what was asked for; several are a comparison, in which it shows.
        lr: η that was asked for beside it, if any: then nothing learned is used.
    """
    learned = run.trained_inner.steps
    own = isinstance(run.learner, HyperRepresentation) and run.config.inner.learn_lr
    if not own or lr or run.inner.lr != run.trained_inner.lr:
        return None
    if learned is None or len(steps) != 1 or (steps[0] or 0) <= learned:
        return None
    return (
        f"{run.path}: T = {steps[0]} with the step size {run.trained_inner.lr:.3g}, which was "
        f"learned for T = {learned}, may do worse for it: choose `lr` too, on validation classes"
    )


def load_run(folder: Path, device: str) -> TrainedRun:
    """Load a run's best checkpoint, or its last where none has validated yet.

    The configuration is the one in the checkpoint: config.yaml beside it is for people to read.

    Args:
        folder: the run's, or `pretrained:TAG` for weights that come with the package.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        InputError: the folder holds no usable run, or there is no such tag.
    """
    tag = pretrained_tag(folder)
    if tag is not None:
        checkpoint, own_steps = pretrained_checkpoint(tag)
        return run_of(checkpoint, folder, device, chosen=ChosenInner(own_steps))
    run = RunFolder(folder)
    run.load_config()  # says what is wrong where the folder is no run's
    path = run.best if run.best.exists() else run.last
    if not path.exists():
        raise InputError(f"{folder}: no checkpoint yet: train it first, or go on with `resume`")
    checkpoint = load_checkpoint(path)
    chosen = chosen_inner(folder, str(checkpoint.file_sha256))
    return run_of(checkpoint, path, device, chosen=chosen)


def load_trained(path: Path, device: str) -> TrainedRun:
    """Load what `load_run` does, or a checkpoint, which needs nothing beside it.

    T and η are those that a `chosen.json` beside it has for its very bytes, or else the training's.

    Raises:
        InputError: there is no usable run.
    """
    try:
        alone = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): give a folder of bilevel-train, a "
            "checkpoint or pretrained:TAG"
        ) from None
    if not alone:
        return load_run(path, device)
    checkpoint = load_checkpoint(path)
    chosen = chosen_inner(path.parent, str(checkpoint.file_sha256), best=False)
    return run_of(checkpoint, path, device, chosen=chosen)


def run_of(
    checkpoint: Checkpoint, path: Path, device: str, *, chosen: ChosenInner = AS_TRAINED
) -> TrainedRun:
    """Return the run of a checkpoint that was read from `path`, with T and η as chosen, if given.

    Raises:
        InputError: the checkpoint is not what a training of this version writes.
    """
    record = read_record(checkpoint, path)
    where = choose_device(device)
    set_threads(record.config.threads)
    learner = make_learner(record.config, record.image_shape, where)
    # No error: the record's reader has compared names and shapes with those of this model.
    learner.load_state_dict(model_tensors(checkpoint.tensors))
    trained = inner_of(learner)
    if not isinstance(learner, HyperRepresentation):
        chosen = AS_TRAINED
    if chosen.steps is not None:
        learner.steps = chosen.steps  # type: ignore[assignment]
    if chosen.optimum is not None and isinstance(learner, HyperRepresentation):
        learner.steps, learner.solver = None, solver_of(chosen.optimum).to(where)
    if chosen.lr is not None and isinstance(learner, HyperRepresentation):
        learner.set_lr(chosen.lr)
    return TrainedRun(
        config=record.config,
        learner=learner,
        trained_inner=trained,
        path=path,
        step=record.step,
        sha256=str(checkpoint.file_sha256),
        image_shape=record.image_shape,
        preprocessing=_preprocessing(record.preprocessing, record.image_shape, path),
        features=record.features,
        data=record.environment.data,
        device=where,
        calibrated=chosen.optimum is not None and trained.steps is None,
    )


def _preprocessing(
    said: Mapping[str, Any] | str | None, image_shape: tuple[int, int, int], path: Path
) -> Preprocessing | None:
    if said is None:
        return None
    if isinstance(said, str):
        return Preprocessing.from_text(said, image_shape)
    try:
        return Preprocessing.from_dict(said)
    except DataError as error:
        raise InputError(f"{path}: its record: {error}") from None
