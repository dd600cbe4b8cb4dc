"""A process that flips bits of a file and loads it: `hostile_flips.py KIND FILE` and flips as JSON.

It writes the number of each flip before it loads the file, so that whoever started it knows at
which one it died; a load that takes ten seconds ends it by a signal. Its last line counts outcomes.
"""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from bilevel_data import DataError, open_store, verify_store

SECONDS = 10


def load_store(path):
    store = open_store(path)
    splits = {name: store.load(name) for name in store.splits}
    return store.manifest, {k: (s.class_names, s.images, s.offsets) for k, s in splits.items()}


def same_store(a, b):
    return a[0] == b[0] and all(
        a[1][k][0] == b[1][k][0] and all(map(np.array_equal, a[1][k][1:], b[1][k][1:]))
        for k in a[1]
    )


def check_store(path):
    """The whole file is refused by its checksum, wherever the flip is."""
    try:
        verify_store(path)
    except DataError:
        return
    raise AssertionError("bilevel-data verify let a flipped bit pass")


def load_checkpoint(path):
    from bilevel_apps.runs.checkpoint import load_checkpoint as load

    return load(path)


def same_checkpoint(a, b):
    return (
        a.record == b.record
        and a.tensors.keys() == b.tensors.keys()
        and all(
            t.dtype == b.tensors[k].dtype and t.equal(b.tensors[k]) for k, t in a.tensors.items()
        )
    )


KINDS = {
    "store": (load_store, same_store, check_store),
    "checkpoint": (load_checkpoint, same_checkpoint, lambda path: None),
}


def flip(kind, path, flips):
    load, same, check = KINDS[kind]
    whole, outcomes = load(path), Counter()
    with path.open("r+b", buffering=0) as file:
        for number, (place, mask) in enumerate(flips):
            os.write(1, f"{number}\n".encode())
            byte = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte[0] ^ mask]), place)
            signal.alarm(SECONDS)
            try:
                found = load(path)
            except ValueError as error:
                if type(error).__name__ not in ("DataError", "InputError"):
                    raise
                outcomes["refused"] += 1
            else:
                outcomes["same" if same(whole, found) else "different"] += 1
            check(path)
            signal.alarm(0)
            os.pwrite(file.fileno(), byte, place)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    flip(sys.argv[1], Path(sys.argv[2]), json.loads(sys.stdin.read()))
