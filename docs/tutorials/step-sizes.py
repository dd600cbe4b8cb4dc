# %% [markdown]
# # Step sizes during a run
#
# The step size of a training is a hyperparameter too. It can be tuned *while* the training runs:
# there is one inner run, and λ moves along with it.

# %% [markdown]
# ## A network and its step size
#
# The data are 8×8 pictures of digits. `lam` holds the logarithm of the step size and a number for
# the momentum; both are functions of λ, so both have a hypergradient.

# %%
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bilevel_core import HeavyBall, Problem, minimize_online

torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
x, x_val, y, y_val = images[:800], images[800:1200], labels[:800], labels[800:1200]
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
start = {name: weight.detach() for name, weight in net.named_parameters()}


def loss(w, images, labels):
    return cross_entropy(functional_call(net, w, (images,)), labels)


problem = Problem(
    inner=lambda w, lam: loss(w, x, y),
    outer=lambda w, lam: loss(w, x_val, y_val),
    init=lambda lam: start,
)
training = HeavyBall(
    step_size=lambda lam, t: lam["step size"].exp(),
    momentum=lambda lam, t: lam["momentum"].sigmoid(),
)

# %% [markdown]
# ## One run in which λ moves
#
# Forward-mode derivatives are carried along with the weights, one tangent per hyperparameter, so
# λ can be updated after every few inner steps. It begins with a step size that is far too small:

# %%
lam = {"step size": torch.tensor(0.02).log(), "momentum": torch.tensor(0.0)}
adam = partial(torch.optim.Adam, lr=0.1)
run = minimize_online(problem, training, lam, steps=300, every=5, optimizer=adam)
for step, validation in list(enumerate(run.values, 1))[::15]:
    print(f"after {5 * step:3} inner steps: validation loss {validation:.3f}")
print(f"step size 0.020 -> {run.lam['step size'].exp():.3f}")
print(f"momentum 0.500 -> {run.lam['momentum'].sigmoid():.3f}")

# %% [markdown]
# ## What it is worth
#
# The same number of steps with the step size and momentum of the start:

# %%
from bilevel_core import solve_inner

fixed = solve_inner(problem, training, lam, steps=300)
rest, truth = images[1200:], labels[1200:]
for name, w in (("as they were", fixed), ("adapted", training.params(run.state))):
    wrong = (functional_call(net, w, (rest,)).argmax(1) != truth).float().mean()
    print(f"test error with step size and momentum {name}: {100 * wrong:.1f} %")

# %% [markdown]
# `bilevel-tune schedules` does this at full length beside a grid of twelve constant pairs: see
# [tune your own problem](../how-to/tune-your-own-problem.md).
