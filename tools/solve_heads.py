"""Give weights that come with the package what fits heads on their features, in place.

    python tools/solve_heads.py TAG STORE.h5 [--decay RHO]

The running mean is that of the training classes. Shrinkage, temperature and, unless it is given,
decay are learned on the validation classes alone, through the optimum of the heads, on tasks of
many sizes: the backbone stays as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel_data import ImageSplit, open_store
from bilevel_models import (
    Encoder,
    Normalization,
    as_images,
    create_model,
    heads,
    pretrained_card,
    pretrained_weights,
)

PLACE = Path(__file__).parents[1] / "packages/models/src/bilevel_models/pretrained"
MOST_A_CLASS = 120  # images of a training class that the mean is of
STEPS, RATE, TASKS = 80, 0.12, 4
EQUAL, MANY = (1, 2, 3, 5, 8, 10, 15, 20), (5, 10, 20, 50)


def features(encoder: Encoder, split: ImageSplit, most: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the features of the first images of each class, and where the classes begin."""
    counts = np.minimum(np.diff(split.offsets), most)
    rows = [np.arange(a, a + n) for a, n in zip(split.offsets, counts, strict=False)]
    found = []
    for part in np.array_split(np.concatenate(rows), max(1, int(counts.sum()) // 500)):
        images = as_images(np.asarray(split.images[part]))[None]
        with torch.no_grad():
            support, query = encoder(images[:, :1], images[:, 1:], training=False)
        found.append(torch.cat((support[0], query[0])))
    return torch.cat(found).double(), np.concatenate(([0], counts.cumsum()))


def shots_of(random: np.random.Generator, most_way: int, most: int) -> list[int]:
    """Return the numbers of images of a task's classes: equal, a few each, or one with many."""
    way, kind = int(random.integers(2, most_way + 1)), random.integers(3)
    if kind == 0:
        found = [int(random.choice(EQUAL))] * way
    elif kind == 1:
        found = random.integers(1, 6, way).tolist()
    else:
        found = [int(random.choice(MANY)), *[int(random.integers(1, 3))] * (way - 1)]
    return [min(shot, most) for shot in found]


def loss(
    solver: heads.HeadSolver,
    values: Tensor,
    offsets: NDArray[np.int64],
    shots: list[int],
    query: int,
    random: np.random.Generator,
) -> Tensor:
    """Return the mean cross-entropy of the query images of a few tasks."""
    support, others = [], []
    for _ in range(TASKS):
        classes = random.choice(len(offsets) - 1, len(shots), replace=False)
        orders = [random.permutation(np.arange(offsets[c], offsets[c + 1])) for c in classes]
        support.append(np.concatenate([o[:n] for o, n in zip(orders, shots, strict=True)]))
        others.append(np.concatenate([o[len(o) - query :] for o in orders]))
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots)).expand(TASKS, -1)
    truth = torch.arange(len(shots)).repeat_interleave(query).expand(TASKS, -1)
    head = solver.fit_labels(values[np.array(support)], labels, len(shots))
    return heads.cross_entropy(heads.logits(head, values[np.array(others)]), truth).mean()


def main() -> None:
    """Learn the numbers, and write card and weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tag")
    parser.add_argument("store", type=Path)
    parser.add_argument("--decay", type=float, help="ρ, where validation is too easy to tell")
    options = parser.parse_args()
    card = pretrained_card(options.tag)
    store = open_store(options.store)
    encoder = Encoder(
        backbone=create_model(card.model, pretrained=card.tag),
        normalization=Normalization(card.normalization),
        unit_length=card.unit_length,
    )
    seen, _ = features(encoder, store.load("train"), MOST_A_CLASS)
    values, offsets = features(encoder, store.load("val"), 10**6)
    solver = heads.HeadSolver(values.shape[1], decay=options.decay or 0.03).double()
    solver.running_mean.copy_(seen.mean(dim=0))
    solver.log_decay.requires_grad_(options.decay is None)
    learned = [p for p in solver.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=RATE, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = np.random.default_rng(0)
    least = int(np.diff(offsets).min())
    query = min(10, least // 4)
    for _ in range(STEPS):
        shots = shots_of(random, min(20, len(offsets) - 1), least - query)
        optimizer.zero_grad()
        loss(solver, values, offsets, shots, query, random).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    numbers = {
        name.removeprefix("log_"): float(f"{float(value.detach().exp()):.4g}")
        for name, value in solver.named_parameters()
    }
    tensors = {**pretrained_weights(card), "head.running_mean": solver.running_mean.float()}
    content = safetensors.torch.save(tensors)
    record = json.loads(card.to_json())
    record |= {"head": numbers, "sha256": hashlib.sha256(content).hexdigest()}
    (PLACE / f"{card.tag}.safetensors").write_bytes(content)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (PLACE / f"{card.tag}.json").write_text(text, encoding="utf-8")
    print(card.tag, numbers)


if __name__ == "__main__":
    main()
