"""A process that keeps what it frees is not handed new pages pass after pass."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, statistics, sys
import torch
from bilevel_models import keep_freed_memory

torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "kept" else False

def turn():
    # Two blocks of 40 MB, which by default are mapped and unmapped each time.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    float((torch.ones(10_000_000) + torch.ones(10_000_000)).sum())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):
    turn()
# A turn can be unlucky: a system short of memory takes pages from whoever has not used them.
print(int(kept), statistics.median_low([turn() for _ in range(9)]))
"""


def faults(how):
    command = [sys.executable, "-c", SCRIPT, how]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    kept, count = map(int, run.stdout.split())
    return bool(kept), count


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is nothing to keep")
def test_kept_memory_causes_no_page_faults():
    kept, few = faults("kept")
    if not kept:
        pytest.skip("this system's C library has no mallopt, or refuses")
    _, many = faults("default")
    assert few < many / 10
