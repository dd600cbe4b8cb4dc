"""The multinomial logistic head against the formulas of its loss and gradient."""

import torch

from bilevel_models import heads


def test_loss_and_gradient_are_those_of_softmax_regression():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 7), generator=generator)
    head = {
        "weight": torch.randn(3, 5, 4, dtype=torch.float64, generator=generator).requires_grad_(),
        "bias": torch.randn(3, 1, 4, dtype=torch.float64, generator=generator).requires_grad_(),
    }
    loss = heads.cross_entropy(heads.logits(head, h), labels)
    assert loss.shape == (3,)
    scores = h @ head["weight"] + head["bias"]
    probabilities = scores.softmax(-1)
    picked = probabilities.gather(-1, labels[..., None])[..., 0]
    assert torch.allclose(loss, -picked.log().mean(1), rtol=1e-12)

    grad_weight, grad_bias = torch.autograd.grad(loss.sum(), (head["weight"], head["bias"]))
    residual = (probabilities - torch.nn.functional.one_hot(labels, 4)) / 7
    assert torch.allclose(grad_weight, h.mT @ residual, rtol=1e-12)
    assert torch.allclose(grad_bias, residual.sum(1, keepdim=True), rtol=1e-12, atol=1e-14)


def test_zeros_take_kind_and_size_from_the_features():
    head = heads.zeros(torch.rand(2, 3, 8, dtype=torch.float64), way=5)
    assert head["weight"].shape == (2, 8, 5)
    assert head["bias"].shape == (2, 1, 5)
    assert head["weight"].dtype == torch.float64
    assert not head["weight"].any()


def test_accuracy_counts_each_episode():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    labels = torch.tensor([[0, 1], [0, 1]])
    assert heads.accuracy(scores, labels).tolist() == [1.0, 0.5]
