# %% [markdown]
# # Penalties in ten lines
#
# A ridge regression has a penalty. How should it be set, and why only one? With a hypergradient
# every feature can have a penalty of its own, because the cost hardly depends on how many there
# are.

# %% [markdown]
# ## A bilevel problem
#
# Inside, weights `w` are fitted to training data under penalties `lam`. Outside, the penalties
# are judged by validation data. You write the two objectives and where the inner run starts:

# %%
from functools import partial

import torch
from sklearn.datasets import load_diabetes

from bilevel_core import GradientDescent, Problem, check_hypergradient, hypergradient, minimize

features, target = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
features, target = features / features.std(0), (target - target.mean()) / target.std()
x, x_val, x_test = features.split([150, 150, 142])
y, y_val, y_test = target.split([150, 150, 142])

problem = Problem(
    inner=lambda w, lam: ((x @ w - y) ** 2).mean() + (lam.exp() * w**2).sum(),
    outer=lambda w, lam: ((x_val @ w - y_val) ** 2).mean(),
    init=torch.zeros_like,  # w_0: one weight per penalty, from zero
)

# %% [markdown]
# ## Its hypergradient
#
# 100 steps of gradient descent train `w`. How would the validation error change with each
# penalty? The answer is the derivative through all 100 steps:

# %%
lam = torch.full((10,), -3.0, dtype=torch.float64)  # penalties of exp(-3) = 0.05
descent = GradientDescent(step_size=0.1)
found = hypergradient(problem, descent, lam, steps=100)
print(f"validation error {found.value:.3f}")
print("gradient", found.grad)

# %% [markdown]
# Look once at every objective of your own: does the engine agree with finite differences?

# %%
report = check_hypergradient(problem, descent, lam, steps=100)
print(report)

# %% [markdown]
# The same as an ordinary loss: `outer_objective` is the validation error with its graph, and
# `backward()` goes through the 100 steps to `lam`, or to whatever computed it.

# %%
from bilevel_core import outer_objective

leaf = lam.clone().requires_grad_()
outer_objective(problem, descent, leaf, steps=100).backward()
print("the same gradient:", torch.allclose(leaf.grad, found.grad))

# %% [markdown]
# ## Follow it
#
# `minimize` takes any optimiser of PyTorch and follows the hypergradient:

# %%
adam = partial(torch.optim.Adam, lr=0.2)
run = minimize(problem, descent, lam, steps=100, outer_steps=40, optimizer=adam)
print(f"validation error {run.values[0]:.3f} -> {run.best_value:.3f}")

# %% [markdown]
# The test data were not looked at. What are the ten penalties worth there?

# %%
from bilevel_core import solve_inner

for name, penalties in (("at the start", lam), ("tuned", run.best_lam)):
    w = solve_inner(problem, descent, penalties, steps=100)
    print(f"test error {name} {((x_test @ w - y_test) ** 2).mean():.3f}")

# %% [markdown]
# ## Next
#
# - [Choose an engine](../explain/engines.md): for long inner runs, few hyperparameters, or
#   quadratic objectives there are cheaper ways to the same gradient.
# - [Step sizes during a run](step-sizes.md): λ may be the step size itself.
# - [Tune your own problem](../how-to/tune-your-own-problem.md) from the command line.
