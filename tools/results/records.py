"""The records: what must be in them, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bilevel_apps.errors import InputError
from bilevel_apps.system.files import read_json

__all__ = ["ItemRecord", "ScoreRecord", "Upright", "read_records"]

FORMAT: Final = "bilevel-record-1"
# A path from the root, or a home, at the beginning of a word: another machine has nothing there.
PLACE = re.compile(r"(?:^|[\s='\"])(?:/|~/|[A-Za-z]:\\)\w")

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n|]+$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Upright(_Document):
    """The accuracy on classes that are not turned."""

    accuracy: Share
    ci95: Share


class ScoreRecord(_Document):
    """The accuracy of a run on episodes.

    Attributes:
        data: the data set.
        network: its name in the configuration.
        way, shot, query: of the episodes.
        split: that they are of; test, unless the test classes were not at hand.
        overlap: whether query images may be support images too.
        rotations: whether turned copies are classes; `upright` has the accuracy without.
        accuracy, ci95: mean over episodes, and half its 95 % interval.
        norm: whose statistics normalise.
        shifts: pixels by which images were moved to average their features; 0: they were not.
        transductive: whether query images are classified with the help of one another.
        steps, lr: T, None where heads are at their optimum, and η; that of older records is the
            learned one.
        paper: the paper's figure for the same task and network, in %.
        train, evaluate: the commands.
        training_seed, seed: of the training and of the episodes.
        hyper_iterations, chosen_at: of the training, and of the checkpoint.
        seconds: of the training; None where nothing recorded them.
        machine, versions: of the training.
        checkpoint_sha256: of the file.
        split_sha256: of the pixels.
    """

    format: Literal["bilevel-record-1"]
    data: Line
    network: Line
    way: int
    shot: int
    query: int
    split: Literal["train", "val", "test"]
    overlap: bool = False
    rotations: bool
    episodes: int
    accuracy: Share
    ci95: Share
    upright: Upright | None
    norm: Line
    shifts: int = 0
    transductive: bool
    steps: int | None
    lr: float | None = None
    paper: float | None
    train: Line
    evaluate: Line
    training_seed: int
    seed: int
    hyper_iterations: int | None
    chosen_at: int
    seconds: float | None
    machine: Line
    versions: Line
    checkpoint_sha256: Digest
    split_sha256: Digest


class _Claim(_Document):
    text: str
    holds: bool
    found: str


class _Ran(_Document):
    command: Line
    machine: Line
    threads: int
    versions: Line


class ItemRecord(_Document):
    """What `bilevel-paper NAME` wrote as NAME.json."""

    item: Line
    title: Line
    scale: Literal["quick", "full"]
    rows: Annotated[list[dict[str, Any]], Field(min_length=1)]
    claims: list[_Claim]
    settings: dict[str, Any]
    cost: dict[str, Any]
    differs: list[str]
    run: _Ran

    @field_validator("cost")
    @classmethod
    def _has_seconds(cls, cost: dict[str, Any]) -> dict[str, Any]:
        seconds = cost.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ValueError(f"expected seconds, a number above 0, found {seconds!r}")
        return cost


Records = dict[str, ScoreRecord | ItemRecord]


def read_records(folder: Path) -> Records:
    """Return the records of a folder by the names of their files, in order.

    Raises:
        InputError: there is none, or one has a key too few or too many, a value that cannot be, or
            names a place on a machine.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(f"{folder}: no records (*.json) here: name the folder that has them")
    return {path.name: _read(path) for path in paths}


def _read(path: Path) -> ScoreRecord | ItemRecord:
    try:
        document = read_json(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: expected a record, found something that is not JSON") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a record, found {type(document).__name__}")
    for text in _texts(document):
        if PLACE.search(text):
            raise InputError(
                f"{path}: {text!r} names a place on a machine: record it with a relative name"
            )
    kind = ItemRecord if "item" in document else ScoreRecord
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
