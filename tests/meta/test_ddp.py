"""A learner inside `DistributedDataParallel`: two processes come to the gradient of one."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import meta_toys
from bilevel_meta import HyperRepresentation

pytestmark = pytest.mark.process

HEADS = {"three steps": 3, "optimum": None}
NAMES = (*HEADS, "maml", "cavia", "relation")


def learner(name):
    if name not in HEADS:
        return meta_toys.learner(name)
    torch.manual_seed(0)
    made = HyperRepresentation(meta_toys.network(), steps=HEADS[name]).double()
    # In training its heads follow a running mean, of which each process has its own.
    return made.eval() if name == "optimum" else made


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def work(rank, folder):
    """Be one of two processes; the first one writes the gradients that it came to."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    part = list(meta_toys.episodes(4).parts(2))[rank]
    found = {}
    for name in NAMES:
        # The wrapper has to live until the gradient is there.
        shared = DistributedDataParallel(learner(name))
        shared(part).backward()
        found[name] = gradients(shared.module)
    if rank == 0:
        torch.save(found, f"{folder}/gradients")
    distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients")
    for name in NAMES:
        alone = learner(name)
        alone.loss(meta_toys.episodes(4)).backward()
        expected = gradients(alone)
        assert found[name].keys() == expected.keys()
        assert sum(bool(grad.abs().max() > 0) for grad in expected.values()) > 5
        for key, grad in expected.items():
            torch.testing.assert_close(found[name][key], grad, rtol=1e-9, atol=1e-12)
