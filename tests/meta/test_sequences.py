"""Where methods with a memory, a sequence, a learned rule or a generative model are known."""

import math

import pytest
import torch
from torch import nn

from bilevel_meta.adaptation import Adaptation, AdaptedNetwork
from bilevel_meta.coordinatewise import preprocessed
from bilevel_meta.methods.learned_optimizer import CoordinatewiseLstm, unrolled_losses
from bilevel_meta.methods.maml import FirstOrderMaml
from bilevel_meta.methods.memory import Slots, write
from bilevel_meta.methods.neural_statistician import Gaussian, divergence
from bilevel_meta.methods.snail import CausalAttention, TemporalConvolution
from meta_toys import WAY, episodes, learner, logits, network

DOUBLE = torch.float64


def sequence(length=9, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, dim, generator=generator, dtype=DOUBLE)


def block(kind):
    torch.manual_seed(0)
    made = TemporalConvolution(3, 4, 2) if kind == "convolution" else CausalAttention(3, 4, 2)
    return made.double()


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_nothing_before_a_position_depends_on_it(kind):
    made, x = block(kind), sequence()
    other = x.clone()
    other[:, 5] += 1
    before, after = made(x), made(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_a_position_added_is_the_sequence_recomputed(kind, length):
    made, x, q = block(kind), sequence(length), sequence(4, seed=1)
    added = made.last(x, q)
    for i in range(4):
        whole = made(torch.cat((x, q[:, i : i + 1]), dim=1))
        torch.testing.assert_close(added[:, i], whole[:, -1])


def test_attention_looks_back_with_weights_that_sum_to_one():
    weights = block("attention").weights(sequence())
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 9, dtype=DOUBLE))
    assert not weights.triu(1).any()


@pytest.mark.parametrize("shot", [1, 2, 3])
def test_convolutions_of_snail_see_the_whole_sequence(shot):
    made = learner("snail", shot=shot)
    dilations = [b.dilation for b in made.blocks if isinstance(b, TemporalConvolution)]
    length = WAY * shot + 1
    half = dilations[: len(dilations) // 2]
    assert dilations == 2 * half
    assert half == [2**k for k in range(len(half))]
    assert sum(half) + 1 >= length  # each convolution of width 2 adds its dilation


def test_snail_refuses_another_shot():
    batch = episodes(shot=1)
    with pytest.raises(ValueError, match="shot=2"):
        learner("snail").adapt(batch.support, batch.support_labels, WAY)


def empty(slots=3, dim=2):
    return Slots(
        torch.zeros(1, slots, dim, dtype=DOUBLE),
        torch.full((1, slots), -1),
        torch.zeros(1, slots, dtype=torch.int64),
    )


def put(memory, angle, label):
    query = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=DOUBLE)
    return write(memory, query, torch.tensor([label]))


def test_two_images_of_a_class_share_a_slot():
    memory = put(put(empty(), 0.0, 7), 0.5, 7)
    assert sorted(memory.values[0].tolist()) == [-1, -1, 7]
    slot = memory.values[0].tolist().index(7)
    middle = torch.tensor([math.cos(0.25), math.sin(0.25)], dtype=DOUBLE)
    torch.testing.assert_close(memory.keys[0, slot], middle)
    assert int(memory.ages[0, slot]) == 0


def test_a_full_memory_forgets_the_oldest():
    memory = empty(slots=2)
    for angle, label in ((0.0, 1), (2.0, 2), (4.0, 3)):
        memory = put(memory, angle, label)
    assert sorted(memory.values[0].tolist()) == [2, 3]


def test_what_is_written_is_read():
    made, batch = learner("memory").eval(), episodes(shot=1)
    classifier = made.adapt(batch.support, batch.support_labels, WAY)
    answers = classifier.logits(batch.support).argmax(dim=-1)
    assert torch.equal(answers, batch.support_labels)


def test_keys_are_constants():
    made, batch = learner("memory").train(), episodes()
    head = made.fit_head(made.encoder(batch.support, training=True)[0], batch.support_labels, WAY)
    assert not head.memory.keys.requires_grad


def test_meta_networks_without_fast_weights_are_their_slow_part():
    made, batch = learner("meta-networks").eval(), episodes()
    for leaf in made.make[-1].parameters():
        leaf.data.zero_()
    _, query = made.encoder(batch.support, batch.query, training=False)
    torch.testing.assert_close(logits(made, batch), made.slow(query))


def test_a_query_of_meta_networks_has_the_mean_of_the_weights_that_it_reads():
    made, batch = learner("meta-networks").eval(), episodes(count=1)
    support, query = made.encoder(batch.support, batch.query, training=False)
    head = made.fit_head(support, batch.support_labels, WAY)
    looks = (made.embedded(query, head.quick) @ head.keys.mT).softmax(dim=-1)
    for i in range(query.shape[1]):
        own = torch.einsum("s,swd->wd", looks[0, i], head.fast[0])
        wanted = made.slow(query[0, i]) + own @ query[0, i]
        torch.testing.assert_close(head.logits(query)[0, i], wanted)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_preprocessing_is_finite_and_has_no_jump(sign):
    edge = math.exp(-10)
    x = sign * torch.tensor([edge * (1 + 1e-9), edge * (1 - 1e-9), 0.0], dtype=DOUBLE)
    above, below, zero = preprocessed(x, 10)
    torch.testing.assert_close(above, below, atol=1e-7, rtol=0)
    assert zero.tolist() == [-1, 0]


def still(made, step_size):
    """Let the gates of Meta-LSTM be those of gradient descent."""
    gates = made.adapted.learned
    for leaf in (gates.forget, gates.admit):
        leaf.data.zero_()
    gates.forget_bias.data.fill_(60.0)
    gates.admit_bias.data.fill_(math.log(step_size / (1 - step_size)))


def test_meta_lstm_with_fixed_gates_is_gradient_descent():
    batch, made = episodes(), learner("meta-lstm")
    still(made, 0.1)
    maml = FirstOrderMaml(network(), way=WAY, steps=2, offsets_move=True).double()
    maml.adapted.network.load_state_dict(made.adapted.network.state_dict())
    torch.testing.assert_close(logits(made, batch), logits(maml, batch))
    weight = [m.backbone.convolutions[0].weight for m in (made, maml)]
    a, b = (
        torch.autograd.grad(m.loss(batch), [w])[0]
        for m, w in zip((made, maml), weight, strict=True)
    )
    torch.testing.assert_close(a, b)


class Numbers(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(at, dtype=DOUBLE))

    def forward(self, x):
        return self.w


@pytest.mark.parametrize("case", ["meta-lstm", "learned-optimizer"])
def test_every_number_has_the_same_rule(case):
    made = learner(case)
    shared, dynamics = made.adapted.learned, made.adapted.dynamics
    order = torch.tensor([3, 1, 0, 2])
    start, target = sequence(4, 2).unbind(-1)
    ends = []
    for chosen in (torch.arange(4), order):
        settings = Adaptation(steps=3, dynamics=dynamics)
        task = AdaptedNetwork(
            Numbers(start[0][chosen]), lambda w, y: ((w - y) ** 2).sum(), settings, shared
        )
        ends.append(task.solve({"x": start[0], "y": target[0][chosen]})["w"])
    torch.testing.assert_close(ends[0][order], ends[1])


def test_a_learned_optimizer_with_no_output_takes_no_step():
    made, batch = learner("learned-optimizer"), episodes()
    made.adapted.learned.output.data.zero_()
    here = logits(made, batch)
    made.adapted.adaptation = Adaptation(steps=0)
    torch.testing.assert_close(here, logits(made, batch))


def quadratic(w):
    return (w["w"] - 1).square().sum()


def test_the_windows_of_a_run_are_apart():
    torch.manual_seed(0)
    shared = CoordinatewiseLstm(4).double()
    begin = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    losses = list(unrolled_losses(shared, quadratic, {"w": begin}, steps=5, window=2))
    assert len(losses) == 3
    (grad,) = torch.autograd.grad(losses[0], [begin], retain_graph=True)
    assert grad.any()
    (grad,) = torch.autograd.grad(losses[1], [begin], allow_unused=True)
    assert grad is None
    losses[2].backward()
    assert all(p.grad is not None and p.grad.any() for p in shared.parameters())


def test_the_divergence_is_that_of_samples():
    q = Gaussian(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.2, -0.5]).double())
    p = Gaussian(torch.tensor([0.0, 0.5]).double(), torch.tensor([0.0, 0.3]).double())
    generator = torch.Generator().manual_seed(0)
    x = Gaussian(*(leaf.expand(200_000, 2) for leaf in q)).draw(generator)

    def log_density(g):
        distance = (x - g.mean).square() / g.log_var.exp()
        return -0.5 * (distance + g.log_var + math.log(2 * math.pi)).sum(dim=-1)

    samples = log_density(q) - log_density(p)
    error = 4 * float(samples.std()) / len(samples) ** 0.5
    assert float(divergence(q, p)) == pytest.approx(float(samples.mean()), abs=error)
    assert float(divergence(q, q)) == 0


def test_a_set_of_images_twice_is_the_set():
    made, batch = learner("neural-statistician").eval(), episodes()
    twice = made.adapt(batch.support.repeat(1, 2, 1, 1, 1), batch.support_labels.repeat(1, 2), WAY)
    torch.testing.assert_close(twice.logits(batch.query), logits(made, batch))


def test_the_bound_is_below_the_likelihood_of_what_the_model_draws():
    """With all divergences zero, the bound is the likelihood of the decoder's own images."""
    made, batch = learner("neural-statistician").train(), episodes()
    for part in (made.pooled, made.encode, made.prior):
        for leaf in part[-1].parameters():
            leaf.data.zero_()
    last = [part for part in made.decode if isinstance(part, nn.Conv2d)][-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    # Every pixel is then a fair coin: its cross-entropy is log 2, whatever the image.
    assert made.loss(batch).item() == pytest.approx(64 * math.log(2))
