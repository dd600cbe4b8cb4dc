# %% [markdown]
# # With JAX
#
# The same problems, dynamics and engines work on JAX arrays. `bilevel_core` imports neither
# PyTorch nor JAX: it takes the framework of the arrays that you give it.

# %%
import jax
import jax.numpy as jnp
import optax

from bilevel_core import GradientDescent, Positive, Problem, hypergradient, minimize

keys = jax.random.split(jax.random.key(0), 3)
x, w_true = jax.random.normal(keys[0], (60, 10)), jax.random.normal(keys[1], (10,))
y = x @ w_true + 0.5 * jax.random.normal(keys[2], (60,))

problem = Problem(
    inner=lambda w, lam: ((x[:30] @ w - y[:30]) ** 2).mean() + (lam * w**2).sum(),
    outer=lambda w, lam: ((x[30:] @ w - y[30:]) ** 2).mean(),
    init=jnp.zeros_like,
)
descent = GradientDescent(step_size=0.1)

# %% [markdown]
# The loop over inner steps is compiled, and `jax.jit` and `jax.vmap` go around it all. Here three
# vectors of penalties get their hypergradients at once:


# %%
def gradient(lam):
    return hypergradient(problem, descent, lam, steps=100).grad


several = jnp.stack([jnp.full(10, penalty) for penalty in (0.01, 0.1, 1.0)])
print(jax.jit(jax.vmap(gradient))(several).shape)

# %% [markdown]
# `outer_objective` is f_T itself, for `jax.grad` and whatever else you do with a function:

# %%
from bilevel_core import outer_objective

slope = jax.grad(lambda lam: outer_objective(problem, descent, lam, steps=100))
print(jnp.allclose(slope(several[0]), gradient(several[0]), rtol=1e-4))

# %% [markdown]
# `minimize` takes an optimiser of optax. `Positive` holds the penalties above zero: the optimiser
# moves their logarithm.

# %%
run = minimize(
    problem,
    descent,
    jnp.ones(10),
    steps=100,
    outer_steps=30,
    optimizer=optax.adam(0.1),
    reparametrize=Positive(),
)
print(f"validation error {run.values[0]:.2f} -> {run.best_value:.2f}")

# %% [markdown]
# ## Four things to know
#
# - **Make a problem once.** A body that is compiled is found again where the problem and the
#   dynamics are the same objects: make them outside the loop.
# - **What your functions capture is frozen** at first use. Data that change come in through λ or
#   `batches`, or with a new `Problem`.
# - **Functions that look at numbers** (`if t < 5`) cannot be traced. They run step by step, more
#   slowly, with the same result.
# - **Many digits** need `jax.config.update("jax_enable_x64", True)`.
