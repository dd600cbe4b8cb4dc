"""bilevel-train in several processes that are copies of this one, so that imports cost nothing."""

import os
import sys
from dataclasses import dataclass

from torch.distributed import TCPStore

from bilevel_apps.cli import train as command
from reliability.faulty import Child

HOST = "localhost"


@dataclass(frozen=True)
class Ended:
    """How the processes ended, by rank, and all that they said."""

    statuses: list[int]
    said: str

    @property
    def errors(self):
        return [line for line in self.said.splitlines() if line.startswith("error:")]


def run_forked(log, *arguments, size=2, meanwhile=lambda children: None):
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
