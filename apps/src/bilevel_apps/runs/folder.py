"""The folder of a run: what is in it, and who may write to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from bilevel_apps.config import Config, dump_config, flatten, load_config, parse_config
from bilevel_apps.config.resume import may_change
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.system.files import disk_failed, is_file, is_there, read_json, write_text
from bilevel_apps.system.moved import moved

__all__ = ["RunFolder", "moved_data"]

# Temporary names of the files that are written into such folders, and nobody else's (`atomic`).
LEFTOVER = re.compile(r"\..+\.(yaml|safetensors|json|csv)\.[0-9a-f]{8}\.tmp", re.DOTALL)
# Left open in a preset, settled once a run began.
SETTLED = ("threads", "precision", "episode.rotations", "model.outputs")


@final
@dataclass(frozen=True)
class RunFolder:
    """config.yaml, last and best checkpoint, and where MLflow has the run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The checkpoint that validated best."""
        return self.path / "best.safetensors"

    @property
    def tracking(self) -> Path:
        """The address of the run in MLflow."""
        return self.path / "tracking.json"

    def began(self) -> bool:
        """Say whether the folder holds a run."""
        return is_there(self.config)

    def trained(self) -> bool:
        """Say whether the folder holds a checkpoint, so that beginning anew would lose work."""
        try:
            return self.last.exists() or self.best.exists()
        except OSError:  # as in `began`
            return False

    def load_config(self) -> Config:
        """Return the run's configuration.

        Raises:
            InputError: the folder holds no run, or its configuration is damaged.
        """
        if not self.began():
            raise InputError(
                f"{self.path}: no run here (no config.yaml): expected the `out` folder of "
                "bilevel-train"
            )
        return parse_config(load_config(self.config), str(self.config))

    def continued(self, given: Config) -> Config:
        """Return the run's configuration, if what was given explicitly agrees with it.

        The device may change, and the stores' places: hashes tell whether the images are the same.
        So may the time that the run is given, and its number of hyper-iterations where the schedule
        of the learning rate does not follow it.

        Raises:
            InputError: a setting differs, or the folder holds no usable run.
        """
        saved = self.load_config()
        kept = saved.flat()
        chosen = flatten(given.model_dump(mode="json", exclude_unset=True))
        free = {key: chosen.pop(key) for key in ("device", "data") if chosen.get(key) is not None}
        longer = {key: chosen.pop(key) for key in may_change(saved.train) if key in chosen}
        train = {key.removeprefix("train."): value for key, value in longer.items()}
        if "tracking.uri" in chosen:  # where it is recorded decides nothing
            uri = chosen.pop("tracking.uri")
            free["tracking"] = saved.tracking.model_copy(update={"uri": uri})
        if "train.mix" in chosen:  # its weights and images are compared with the checkpoint's
            train["mix"] = chosen.pop("train.mix")
        elif saved.train.mix:
            train["mix"] = {
                str(moved_data(path, self.path) or path): weight
                for path, weight in saved.train.mix.items()
            }
        free["train"] = saved.train.model_copy(update=train)
        if "data" not in free and (store := moved_data(saved.data, self.path)) is not None:
            free["data"] = str(store)
        for key, value in chosen.items():
            settled = key in SETTLED and value in (None, "auto")
            if not settled and value != kept[key]:
                raise InputError(
                    f"{self.path}: the run has {key}={_yaml(kept[key])}, but {key}={_yaml(value)} "
                    "was given, or is the preset's: resume with the same settings, or choose "
                    "another `out`"
                )
        return saved.model_copy(update=free)

    def check_config(self) -> None:
        """Refuse to write over a file of the configuration's name that no run has written.

        Raises:
            InputError: there is one.
        """
        if not self.began():
            return
        try:
            ours = self.config.read_bytes() == dump_config(self.load_config()).encode()
        except (InputError, OSError):
            ours = False
        if not ours:
            raise InputError(
                f"{self.config}: there already, not as a run writes it, and would be overwritten: "
                "choose another `out`, or move it away"
            )

    def save_config(self, config: Config) -> None:
        """Write the configuration, whole or not at all."""
        write_text(self.config, dump_config(config))

    def load_tracking(self) -> dict[str, Any]:
        """Return {"uri": …, "run_id": …}, or nothing where the run was not tracked."""
        try:
            loaded = read_json(self.tracking)
            known = {key: loaded[key] for key in ("uri", "run_id")}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return known if all(isinstance(value, str) for value in known.values()) else {}

    def save_tracking(self, uri: str, run_id: str) -> None:
        """Remember where MLflow has the run, so that a resume continues it there."""
        write_text(self.tracking, json.dumps({"uri": uri, "run_id": run_id}))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it.

        Raises:
            InputError: the folder cannot be written, or another process trains there.
            RunError: the disk is full or broken.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another process is at work in this folder: wait for its end, or "
                "choose another `out`"
            ) from None
        except OSError as error:
            reason = f"{self.path}: cannot write to this folder ({error.strerror})"
            if disk_failed(error):
                raise RunError(f"{reason}: make room, then `resume`") from None
            raise InputError(f"{reason}: choose another `out`") from None
        try:
            # A killed process may have left a half-written file under a temporary name.
            for leftover in self.path.glob(".*.tmp"):
                if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                    leftover.unlink()
            yield
        finally:
            lock.release()


def moved_data(
    recorded: str | Path | None, near: Path, fits: Callable[[Path], bool] = bool
) -> Path | None:
    """Return the store of a run, where it was or where it was moved along with the run's folder.

    Args:
        recorded: where it was.
        near: the run's folder.
        fits: says of a file in another place whether it is that store.
    """
    if recorded is None:
        return None
    path = Path(recorded)
    if is_file(path):
        return path
    return moved(path, near.resolve(), lambda other: is_file(other) and fits(other))


def _yaml(value: object) -> str:
    """Return a value as `--set` takes it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
