"""What a run is: one frozen object, and the meaning, bounds and default of every key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

__all__ = ["Config", "Section", "flatten"]


def _or_registered(value: object, known: ValidatorFunctionWrapHandler) -> object:
    """Accept a method of the package, or one that a module of the user's own has registered."""
    try:
        return known(value)
    except ValidationError:
        # Nothing registers without importing it, and `--help` is to load no library.
        registry = sys.modules.get("bilevel_meta.registry")
        if registry is not None and isinstance(value, str) and value in registry.LEARNERS:
            return value
        raise


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("no_switch", "expected a number")
    return value


# YAML gives a bool where 1 was meant and "1e-3" where a number was: the first is refused, the
# second accepted.
Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]
Switch = Annotated[bool, Field(strict=True)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _number_or_range(value: object) -> object:
    """Refuse what is neither one number of things nor the lowest and the highest of them."""
    bounds = value if isinstance(value, (list, tuple)) else (value, value)
    whole = len(bounds) == 2 and all(type(bound) is int and bound >= 1 for bound in bounds)
    if not whole or bounds[0] > bounds[1]:
        raise PydanticCustomError("range", "expected a number from 1 up, or [LOWEST, HIGHEST]")
    return value


# One number, or a range that each meta-batch draws its own from.
Drawn = Annotated[int | tuple[int, int], BeforeValidator(_number_or_range)]

Option = Annotated[bool, Field(strict=True)] | Annotated[int, Field(strict=True)] | Number | str

# One change of the pictures or a list of them.
Changes = Annotated[
    tuple[Literal["affine", "crop", "shift", "flip", "colour"], ...], BeforeValidator(_several)
]


class Section(BaseModel):
    """A part of the configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EpisodeSection(Section):
    """The task to solve, in validation and test, and in training unless `train` says otherwise."""

    way: Count = Field(default=5, description="classes per episode")
    shot: Count = Field(default=1, description="support images per class")
    query: Count = Field(default=15, description="query images per class")
    rotations: Switch | None = Field(
        default=None,
        description="copies turned by 90° are classes; null: as the store says",
    )


class ModelSection(Section):
    """The representation."""

    name: str = Field(
        default="omniglot-net",
        description="omniglot-net, c4l, rn, resnet12, torchvision:NAME, timm:NAME, or features: "
        "those of a store of bilevel-data features",
    )
    norm: Literal["episode", "batch", "ghost", "support"] = Field(
        default="ghost", description="whose statistics normalise: episode, batch, ghost or support"
    )
    unit_length: Switch = Field(default=True, description="divide each feature by its length")
    filters: Count | None = Field(
        default=None, description="filters of the first layer; null: the model's own"
    )
    kernel_size: Annotated[Literal[1, 3], BeforeValidator(_no_switch)] | None = Field(
        default=None,
        description="size of a block's convolutions (rn), 1 or 3; null: the model's own",
    )
    outputs: Count | None = Field(
        default=None,
        description="outputs of a last linear layer; null: none (multiclass: training classes)",
    )

    weights: str | None = Field(
        default=None,
        description="to begin with: a run, pretrained:TAG or FILE.safetensors; null: fresh",
    )


class InnerSection(Section):
    """The inner problem: each episode's head, at its optimum or after T steps (Eq. 10)."""

    steps: CountOrZero | None = Field(
        default=None, description="T, inner steps of descent; null: heads at their optimum"
    )
    lr: Positive = Field(default=0.1, description="η, the inner step size, where it starts")
    learn_lr: Switch = Field(default=True, description="learn η by its hypergradient")
    scale: Positive = Field(default=10.0, description="factor on the features, where it starts")
    learn_scale: Switch = Field(default=True, description="learn the factor by its hypergradient")


class TrainSection(Section):
    """The outer problem."""

    steps: Count = Field(default=1500, description="hyper-iterations; the last is validated too")
    minutes: Positive | None = Field(
        default=None, description="end after so many minutes, resumes included; null: never"
    )
    patience: Count | None = Field(
        default=None, description="end after so many validations without a better one; null: never"
    )
    meta_batch: Count = Field(default=8, description="episodes per hyper-iteration")
    accumulate: Count = Field(
        default=1, description="parts in which a meta-batch passes, to save memory"
    )
    way: Drawn | None = Field(
        default=None,
        description="classes in training, or a range for each meta-batch to draw from, such as "
        "[5, 20]; null: episode.way",
    )
    shot: Drawn | None = Field(
        default=None,
        description="support images in training, or a range, such as [1, 10]; null: episode.shot",
    )
    query: Count | None = Field(
        default=None, description="query images in training; null: episode.query"
    )
    mix: dict[str, Positive] = Field(
        default={},
        description="other stores that meta-batches are drawn from, by weight against 1 of data, "
        "such as {b.h5: 0.5}",
    )
    overlap: Switch = Field(
        default=False,
        description="in training queries may be support images, as in the paper's loader",
    )
    lr: Positive = Field(default=3e-3, description="outer learning rate (the peak, for onecycle)")
    schedule: Literal["constant", "paper", "cosine", "onecycle"] = Field(
        default="onecycle", description="constant, paper (lr / (1 + 1e-5 k)), cosine or onecycle"
    )
    optimizer: Literal["adamw", "muon", "sgd"] = Field(
        default="adamw",
        description="adamw, muon (adamw for all but filters), or sgd with Nesterov momentum 0.9",
    )
    weight_decay: NonNegative = Field(
        default=1e-3, description="weight decay of the backbone; decoupled (sgd: in the gradient)"
    )
    clip: Positive | None = Field(
        default=None, description="shorten the gradient to this norm; null: leave it"
    )
    average: Annotated[Fraction, Field(gt=0)] | None = Field(
        default=None, description="decay of an average of the weights, which is scored; null: none"
    )
    label_smoothing: Fraction = Field(
        default=0.0, description="part of a label that all classes share, in the outer loss"
    )
    augment: Changes | None = Field(
        default=None, description="training images: any of [affine, crop, shift, flip, colour]"
    )
    small: Count | None = Field(
        default=None, description="side of the images in the first half of the steps; null: whole"
    )
    validate_every: Count = Field(default=250, description="hyper-iterations between validations")
    validate_episodes: Annotated[Count, Field(ge=2)] = Field(
        default=200, description="episodes per validation; one alone has no interval"
    )
    checkpoint_every: Count = Field(default=100, description="hyper-iterations between checkpoints")


class TrackingSection(Section):
    """MLflow."""

    enabled: Switch = Field(default=True, description="log to MLflow")
    uri: str | None = Field(
        default=None, description="address; null: MLFLOW_TRACKING_URI, or mlflow.db beside DIR"
    )
    experiment: str | None = Field(
        default=None, description="name of the experiment; null: the data set's"
    )
    every: Count = Field(default=20, description="hyper-iterations averaged into one logged value")


class Config(Section):
    """All that decides a run's result, and where its record goes."""

    seed: Seed = Field(default=0, description="seed of initial weights and episodes")
    threads: Threads | None = Field(
        default=None, description="threads to compute with; null: every core it may use"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to compute: auto, cpu or cuda"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="precision of the convolutions; auto: bfloat16 where the processor has it",
    )
    data: str | None = Field(default=None, description="the store, an .h5 file of bilevel-data")
    method: Annotated[
        Literal[
            "hyper-representation",
            "bilevel-train",
            "approx",
            "approx-train",
            "classic-train",
            "multiclass",
            "anil",
            "baseline",
            "baseline++",
            "boil",
            "cavia",
            "fomaml",
            "imaml",
            "learned-optimizer",
            "maml",
            "maml++",
            "matching",
            "memory",
            "meta-lstm",
            "meta-networks",
            "meta-sgd",
            "neural-statistician",
            "prototypical",
            "relation",
            "reptile",
            "ridge",
            "siamese",
            "simpleshot",
            "snail",
            "svm",
        ],
        WrapValidator(_or_registered),
    ] = Field(
        default="hyper-representation",
        description="or bilevel-train, approx, approx-train, classic-train, multiclass (Table 4); "
        "or a method of Table 3 and its kin, such as maml or prototypical",
    )
    options: dict[str, Option] = Field(
        default={},
        description="settings of a method of Table 3, such as {steps: 5}; the others have inner",
    )
    episode: EpisodeSection = EpisodeSection()
    model: ModelSection = ModelSection()
    inner: InnerSection = InnerSection()
    train: TrainSection = TrainSection()
    tracking: TrackingSection = TrackingSection()

    def flat(self) -> dict[str, Any]:
        """Return every value by its dotted key, such as `train.steps`."""
        return flatten(self.model_dump(mode="json"))


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all sections by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{sub}": v for sub, v in value.items()}
        else:
            flat[key] = value
    return flat
