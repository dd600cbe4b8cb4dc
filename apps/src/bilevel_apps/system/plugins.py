"""Python modules of the user's own, which commands import where they are told to."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from bilevel_apps.errors import InputError

__all__ = ["VARIABLE", "import_asked", "imported"]

VARIABLE = "BILEVEL_IMPORT"
"""Modules or files that every command imports first, with commas between."""


def import_asked() -> None:
    """Import what the environment asks for, such as a module that calls `register_model`.

    It is the environment of whoever runs the command, and never a file of a run, that names code.

    Raises:
        InputError: one cannot be imported.
    """
    for place in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        imported(place, VARIABLE)


def imported(place: str, source: str) -> ModuleType:
    """Return a module by its name or the path of its file.

    Modules are also found in the current directory.

    Args:
        place: `MODULE` or `FILE.py`.
        source: where it was given, for messages.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        if place.endswith(".py"):
            return _from_file(Path(place), source)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise InputError(
                f"{source}: no module {error.name}, here or installed: give a module's name or a "
                "FILE.py"
            ) from error
        raise InputError(
            f"{source}: {place} imports {error.name}, which is missing: install it"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module can fail in any way
        raise InputError(
            f"{source}: {place} cannot be imported ({type(error).__name__}: {error})"
        ) from error


_LOADED: dict[Path, ModuleType] = {}
"""Files that were run already, by their resolved paths: each is run once a process."""


def _from_file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{source}: {path}: no such file: name one that is there")
    if (known := _LOADED.get(path.resolve())) is not None:
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file: give a FILE.py or the name of a module")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name; a module of that name is left alone.
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))  # its neighbours, as python FILE.py has it
    spec.loader.exec_module(module)
    _LOADED[path.resolve()] = module
    return module
