"""What a run is: one frozen object, from a preset or a YAML file and `--set key=value`."""

from __future__ import annotations

import difflib
import itertools
import reprlib
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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

from bilevel_apps.errors import InputError

__all__ = [
    "Config",
    "describe_keys",
    "dump_config",
    "flatten",
    "list_presets",
    "load_config",
    "load_preset",
    "parse_config",
    "parse_yaml",
    "short",
    "with_settings",
]


DEEPEST = 64  # brackets in settings; two are in use


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


def list_presets() -> tuple[str, ...]:
    """Return the presets' names, such as `omniglot-5way-1shot` and `paper/omniglot-5way-1shot`."""
    root = resources.files("bilevel_apps.config") / "presets"
    own = [entry.name for entry in root.iterdir()]
    paper = [f"paper/{entry.name}" for entry in (root / "paper").iterdir()]
    return tuple(sorted(name[:-5] for name in own + paper if name.endswith(".yaml")))


def load_preset(name: str) -> dict[str, Any]:
    """Return a preset's settings.

    Raises:
        InputError: no such preset.
    """
    if name not in list_presets():
        raise InputError(
            f"--preset {name}: no such preset; choose one of {', '.join(list_presets())}"
        )
    text = (resources.files("bilevel_apps.config") / "presets" / f"{name}.yaml").read_text("utf-8")
    return _mapping(text, f"preset {name}")


def load_config(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file.

    Raises:
        InputError: the file cannot be read or is not a mapping.
    """
    # Here, so that `--help` loads no library for it.
    from bilevel_data import DataError
    from bilevel_data.files.limits import MAX_CONFIG_BYTES
    from bilevel_data.files.regular_file import read_plain

    remedy = "give a YAML file, such as the config.yaml of a run"
    try:
        text = read_plain(path, MAX_CONFIG_BYTES, what="settings", remedy=remedy).decode()
    except FileNotFoundError:
        raise InputError(f"{path}: cannot be read (No such file or directory): {remedy}") from None
    except DataError as error:
        raise InputError(str(error)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected YAML, found something that is not text") from error
    return _mapping(text, str(path))


def with_settings(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return settings with `key.sub=value` assignments applied; values are read as YAML.

    Raises:
        InputError: an assignment without `=`, or into something that is not a section.
    """
    result = {key: dict(v) if isinstance(v, dict) else v for key, v in settings.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment}: expected KEY=VALUE, such as train.steps=100")
        value = parse_yaml(text, f"--set {assignment}")
        *sections, last = key.split(".")
        target: Any = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"--set {assignment}: {section} is a value, not a section")
        target[last] = value
    return result


def parse_config(settings: Mapping[str, Any], source: str) -> Config:
    """Validate settings; `source` stands in the message.

    Raises:
        InputError: an unknown key, or a value of the wrong type or range.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: unknown key {key}; {_suggestion(key)}") from None
        expected = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "model_type":
            expected = f"a section, with keys such as {key}.{_first_key(key)}"
        raise InputError(f"{source}: {key}: {expected}, found {short(first['input'])}") from None


def short(value: object) -> str:
    """Return a value of a file for a message: on one line, not long, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"


def _first_key(section: str) -> str:
    return next(k for k in describe_keys() if k.startswith(f"{section}.")).partition(".")[2]


def dump_config(config: Config) -> str:
    """Return a configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text holds; `source` stands in the message.

    Raises:
        InputError: it is not YAML.
    """
    if _depth(text) > DEEPEST:  # of which the scanner would make seconds of work
        raise InputError(f"{source}: brackets nested more than {DEEPEST} deep: correct it")
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_node(node, source, set())
        return None if node is None else loader.construct_document(node)
    # Impossible dates and numbers are a ValueError, brackets nested too deep a RecursionError.
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(f"{source}: not valid YAML{line}: correct it") from error
    finally:
        if loader is not None:
            loader.dispose()


def _depth(text: str) -> int:
    """Return how many brackets are open at once, at most."""
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    return max(itertools.accumulate(steps), default=0)


def _check_node(node: yaml.Node | None, source: str, seen: set[int]) -> None:
    """Refuse what a few lines of YAML can grow from, and keys of which one would be lost."""
    if not isinstance(node, yaml.CollectionNode):
        return
    line = f"{source}: line {node.start_mark.line + 1}"
    if id(node) in seen:
        raise InputError(f"{line}: is used again by an alias (*): write it out in both places")
    seen.add(id(node))
    keys: set[str] = set()
    for entry in node.value:
        pair = entry if isinstance(entry, tuple) else (entry,)
        if len(pair) == 2 and isinstance(pair[0], yaml.ScalarNode):
            if pair[0].value in keys:
                where = pair[0].start_mark.line + 1
                raise InputError(
                    f"{source}: line {where}: {reprlib.repr(pair[0].value)} stands there twice: "
                    "remove one"
                )
            keys.add(pair[0].value)
        for child in pair:
            _check_node(child, source, seen)


def _mapping(text: str, source: str) -> dict[str, Any]:
    loaded = parse_yaml(text, source)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{source}: expected keys and values, found {type(loaded).__name__}")
    return loaded


def describe_keys() -> dict[str, str]:
    """Return the default and the meaning of every key, as a line."""
    lines = {}
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            parts = {f"{name}.{sub}": inner for sub, inner in section.model_fields.items()}
        else:
            parts = {name: field}
        for key, part in parts.items():
            default = "null" if part.default is None else str(part.default).lower()
            lines[key] = f"{default:13} {part.description}"
    return lines


def _suggestion(key: str) -> str:
    sections = {known.partition(".")[0] for known in describe_keys()}
    close = difflib.get_close_matches(key, [*describe_keys(), *sections], n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(describe_keys())}"
