"""Muon: its steps beside torch's own, which takes matrices alone, and beside Adam's."""

import pytest
import torch

from bilevel_apps.training.muon import MOMENTUM, RATE, Muon, orthogonal


def weights(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    ]


def run(optimizer, parameters, steps=6):
    """Take steps along gradients that depend on the weights and on the step."""
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.cos(parameter.detach() * (step + 1)) / (step + 1)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("shape", [(4, 4), (3, 11), (11, 3), (1, 7), (7, 1)])
def test_orthogonal_keeps_the_directions_and_evens_the_sizes(shape):
    matrix = weights(shape)[0].detach()
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.mT @ orthogonal(matrix) @ vh.mT
    sizes = found.diagonal()
    assert torch.allclose(found, torch.diag(sizes), atol=1e-10, rtol=0)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3


def test_the_size_of_a_gradient_says_nothing_and_none_moves_nothing():
    matrix = weights((5, 9))[0].detach()
    assert torch.allclose(orthogonal(matrix), orthogonal(1e-9 * matrix), atol=1e-9, rtol=0)
    assert torch.equal(orthogonal(0 * matrix), 0 * matrix)


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_matrices_move_as_torch_moves_them(shape):
    """That one orthogonalises in bfloat16, whose rounding is 2⁻⁸."""
    options = {"lr": 0.02, "weight_decay": 0.1}
    [ours], [theirs] = weights(shape), weights(shape)
    start = ours.detach().clone()
    factor = RATE / 0.2  # theirs has the factor that matches Adam's size
    stock = torch.optim.Muon(
        [theirs],
        lr=options["lr"] * factor,
        weight_decay=options["weight_decay"] / factor,
        momentum=MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    [expected] = run(stock, [theirs])
    [found] = run(Muon([{"params": [ours]} | options], lr=options["lr"]), [ours])
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


def test_filters_move_as_the_matrix_of_their_rows():
    [filters], [matrix] = weights((6, 3, 2, 2)), weights((6, 12))
    with torch.no_grad():
        matrix.copy_(filters.flatten(1))
        filters.data = filters.data.to(memory_format=torch.channels_last)
    groups = (
        [{"params": [filters], "weight_decay": 0.1}],
        [{"params": [matrix], "weight_decay": 0.1}],
    )
    [found] = run(Muon(groups[0], lr=0.02), [filters])
    [expected] = run(Muon(groups[1], lr=0.02), [matrix])
    assert torch.allclose(found.flatten(1), expected, atol=1e-12, rtol=0)


def test_all_else_moves_as_adam_moves_it():
    ours, theirs = weights((5,), (), (4, 3)), weights((5,), (), (4, 3))
    found = run(Muon([{"params": ours, "weight_decay": 0.1}], lr=0.02), ours)
    expected = run(torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1), theirs)
    for mine, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(mine, other)
    assert not torch.allclose(found[2], expected[2])


def test_gradients_stand_after_a_step_and_a_weight_without_one_stays():
    moved, still = weights((3, 4), (3, 4))
    moved.grad = gradient = torch.ones_like(moved)
    before = still.detach().clone()
    Muon([{"params": [moved, still], "weight_decay": 0.1}], lr=0.02).step()
    assert moved.grad is gradient
    assert still.grad is None
    assert torch.equal(still, before)
