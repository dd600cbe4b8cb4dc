"""Commands in processes that begin as copies of this one, so that imports cost nothing."""

import importlib
import os
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points

from torch.distributed import TCPStore

from bilevel_apps.cli import train as command
from reliability.faulty import Child

HOST = "localhost"


@dataclass(frozen=True)
class Printed:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def run_alone(words, folder):
    """Run one of our installed commands in a folder."""
    (entry,) = entry_points(group="console_scripts", name=words[0])

    def work():
        sys.argv = list(words)
        entry.load()()

    return _in_a_copy(work, folder)


def run_code(text, folder):
    """Run a program in a folder."""
    return _in_a_copy(lambda: exec(compile(text, "program", "exec"), {}), folder)


def _in_a_copy(work, folder):
    """Where no address of a tracker is given."""
    with warnings.catch_warnings(action="ignore"):
        importlib.import_module("mlflow")  # by this process, once
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    err.unlink(missing_ok=True)

    def copied():
        os.chdir(folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        warnings.resetwarnings()
        with out.open("w") as sys.stdout:
            work()

    return Printed(Child(log=err, work=copied).wait(), out.read_text(), err.read_text())


@dataclass(frozen=True)
class Ended:
    """How the processes ended, by rank, and all that they said."""

    statuses: list[int]
    said: str

    @property
    def errors(self):
        return [line for line in self.said.splitlines() if line.startswith("error:")]


def run_together(log, *arguments, size=2, meanwhile=lambda children: None):
    """Run the command as torchrun does, which keeps the store where its processes meet."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    told = {
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }

    def work(rank):
        os.environ |= told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.argv = ["bilevel-train", *map(str, arguments)]
        command.main()

    children = [Child(log=log, work=lambda rank=rank: work(rank)) for rank in range(size)]
    meanwhile(children)
    return Ended([child.wait() for child in children], log.read_text())
