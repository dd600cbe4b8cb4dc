"""The problems of streams.py, and the ways through a stream of fresh tasks: ours and its peers.

Every side is made from a problem's name and returns `step(k)`, which takes hyper-iteration k's
tasks, computes f_T and ∇f_T at the same λ, and returns the value and the norm of the gradient.
Tasks are made by `prepare`, before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from bilevel_core import (
    ConjugateGradient,
    Engine,
    GradientDescent,
    Implicit,
    Problem,
    Unrolled,
    outer_objective,
    over_tasks,
)

__all__ = ["SIDES", "STEPS", "Step", "prepare"]

Step: TypeAlias = Callable[[int], tuple[float, float]]

TASKS, SHOTS, QUERIES, ETA = 25, 10, 15, 0.01
RIDGE_ROWS, RIDGE_COLUMNS, RIDGE_ETA, PENALTY = 64, 40, 0.2, 0.05
STEPS = {"sinusoid": 1, "omniglot": 1, "ridge": 50, "ridge, implicit": 200}


# --- tasks, the same for every side ---------------------------------------------------------------


def sinusoids(k: int) -> dict[str, np.ndarray]:
    """Return 25 tasks of amplitude in [0.1, 5] and phase in [0, π]: x and y of (25, n, 1)."""
    draw = np.random.default_rng([0, k])
    amplitude, phase = draw.uniform(0.1, 5, (TASKS, 1, 1)), draw.uniform(0, np.pi, (TASKS, 1, 1))
    x = draw.uniform(-5, 5, (TASKS, SHOTS + QUERIES, 1))
    return {"x": x.astype("float32"), "y": (amplitude * np.sin(x - phase)).astype("float32")}


def episodes(k: int) -> dict[str, np.ndarray]:
    """Return 4 tasks of 5 classes, 1 image to train on and 5 to look at, of 28×28 noise."""
    draw = np.random.default_rng([1, k])
    x = draw.normal(size=(4, 30, 1, 28, 28)).astype("float32")
    return {"x": x, "y": np.tile(np.arange(5), (4, 6))}


def ridges(k: int) -> dict[str, np.ndarray]:
    """Return a regression on 40 features, 64 rows to train on and 64 to validate."""
    draw = np.random.default_rng([2, k])
    x = draw.normal(size=(2, RIDGE_ROWS, RIDGE_COLUMNS)) / RIDGE_COLUMNS**0.5
    y = x @ draw.normal(size=RIDGE_COLUMNS) + 0.5 * draw.normal(size=(2, RIDGE_ROWS))
    return {"x": x.astype("float32"), "y": y.astype("float32")}


TASKS_OF = {
    "sinusoid": sinusoids,
    "omniglot": episodes,
    "ridge": ridges,
    "ridge, implicit": ridges,
}


@cache
def tensors(name: str, k: int) -> dict[str, Tensor]:
    """Return the tasks of a hyper-iteration as tensors, made once."""
    return {key: torch.as_tensor(value) for key, value in TASKS_OF[name](k).items()}


@cache
def arrays(name: str, k: int) -> dict[str, Any]:
    """Return the tasks of a hyper-iteration as arrays of JAX, made once."""
    import jax.numpy as jnp

    return {key: jnp.asarray(value) for key, value in TASKS_OF[name](k).items()}


def prepare(framework: str, name: str, count: int) -> None:
    """Make the tasks of the first hyper-iterations."""
    for k in range(count):
        (tensors if framework == "torch" else arrays)(name, k)


# --- PyTorch --------------------------------------------------------------------------------------


def network(name: str) -> torch.nn.Module:
    """Return the 1-40-40-1 network, or the Omniglot net without normalisation."""
    torch.manual_seed(0)
    if name == "sinusoid":
        return torch.nn.Sequential(
            *(torch.nn.Linear(1, 40), torch.nn.ReLU(), torch.nn.Linear(40, 40), torch.nn.ReLU()),
            torch.nn.Linear(40, 1),
        )
    blocks: list[torch.nn.Module] = []
    for channels in (1, 64, 64, 64):
        blocks += [torch.nn.Conv2d(channels, 64, 3, padding=1), torch.nn.ReLU()]
        blocks += [torch.nn.MaxPool2d(2)]
    return torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(64, 5))


def task_loss(name: str) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """Return the network and the loss of one task on its support (True) or query images."""
    net = network(name)
    shots = SHOTS if name == "sinusoid" else 5

    def loss(w: dict[str, Tensor], task: dict[str, Tensor], support: bool) -> Tensor:
        rows = slice(None, shots) if support else slice(shots, None)
        found, y = functional_call(net, w, (task["x"][rows],)), task["y"][rows]
        if name == "sinusoid":
            return ((found - y) ** 2).mean()
        return torch.nn.functional.cross_entropy(found, y)

    return net, loss


def answer(value: Tensor, grads: Any) -> tuple[float, float]:
    """Return the value and the norm of the gradient as numbers."""
    return value.item(), torch.cat([g.flatten() for g in grads]).norm().item()


def torch_maml(name: str) -> Step:
    """Differentiate ours: all tasks at once, through `backward`'s graph."""
    net, loss = task_loss(name)
    problem = over_tasks(
        Problem(
            inner=lambda w, lam, task: loss(w, task, True),  # noqa: ARG005
            outer=lambda w, lam, task: loss(w, task, False),  # noqa: ARG005
            init=lambda lam, task: lam,  # noqa: ARG005
        )
    )
    descent, lam = GradientDescent(step_size=ETA), dict(net.named_parameters())

    def step(k: int) -> tuple[float, float]:
        data = tensors(name, k)
        value = outer_objective(problem, descent, lam, data, steps=STEPS[name], engine=Unrolled())
        return answer(value, torch.autograd.grad(value, list(lam.values())))

    return step


def torch_maml_by_hand(name: str) -> Step:
    """Write the same loop in plain PyTorch, all tasks at once."""
    net, loss = task_loss(name)
    lam = dict(net.named_parameters())
    of_tasks = vmap(lambda w, task, support: loss(w, task, support), in_dims=(0, 0, None))

    def step(k: int) -> tuple[float, float]:
        data = tensors(name, k)
        count = len(data["x"])
        w = {key: leaf.expand(count, *leaf.shape) + 0 for key, leaf in lam.items()}
        for _ in range(STEPS[name]):
            inner = of_tasks(w, data, True).sum()
            grads = torch.autograd.grad(inner, list(w.values()), create_graph=True)
            w = {key: x - ETA * g for (key, x), g in zip(w.items(), grads, strict=True)}
        value = of_tasks(w, data, False).mean()
        return answer(value, torch.autograd.grad(value, list(lam.values())))

    return step


def higher_maml(name: str) -> Step:
    """Take differentiable SGD steps on a patched module, task by task, as its examples do."""
    import higher

    net, _ = task_loss(name)
    plain = torch.optim.SGD(net.parameters(), lr=ETA)
    shots = SHOTS if name == "sinusoid" else 5

    def criterion(found: Tensor, y: Tensor) -> Tensor:
        if name == "sinusoid":
            return ((found - y) ** 2).mean()
        return torch.nn.functional.cross_entropy(found, y)

    def step(k: int) -> tuple[float, float]:
        data = tensors(name, k)
        values = []
        for x, y in zip(data["x"], data["y"], strict=True):
            with higher.innerloop_ctx(net, plain, copy_initial_weights=False) as (w, optimizer):
                for _ in range(STEPS[name]):
                    optimizer.step(criterion(w(x[:shots]), y[:shots]))
                values.append(criterion(w(x[shots:]), y[shots:]))
        value = torch.stack(values).mean()
        return answer(value, torch.autograd.grad(value, list(net.parameters())))

    return step


def torchopt_maml(name: str) -> Step:
    """Take steps of `MetaSGD`, task by task, with its state put back after each."""
    import torchopt

    net, _ = task_loss(name)
    optimizer = torchopt.MetaSGD(net, lr=ETA)
    shots = SHOTS if name == "sinusoid" else 5
    start = list(net.parameters())

    def step(k: int) -> tuple[float, float]:
        data = tensors(name, k)
        before = torchopt.extract_state_dict(net, by="reference")
        memory = torchopt.extract_state_dict(optimizer, by="reference")
        values = []
        for x, y in zip(data["x"], data["y"], strict=True):
            for _ in range(STEPS[name]):
                optimizer.step(((net(x[:shots]) - y[:shots]) ** 2).mean())
            values.append(((net(x[shots:]) - y[shots:]) ** 2).mean())
            torchopt.recover_state_dict(net, before)
            torchopt.recover_state_dict(optimizer, memory)
        value = torch.stack(values).mean()
        return answer(value, torch.autograd.grad(value, start))

    return step


def ridge_loss(w: Any, penalty: Any, x: Any, y: Any, exp: Callable[[Any], Any]) -> Any:
    """Return ½ mean (xw - y)² + ½ Σ exp(penalty) w², in any framework."""
    return 0.5 * ((x @ w - y) ** 2).mean() + 0.5 * (exp(penalty) * w**2).sum()


def ridge_problem(exp: Callable[[Any], Any], zeros: Callable[[Any], Any]) -> Problem:
    """Return the ridge regression of a task, in any framework; λ is one log penalty a feature."""
    return Problem(
        inner=lambda w, lam, task: ridge_loss(w, lam, task["x"][0], task["y"][0], exp),
        outer=lambda w, lam, task: 0.5 * ((task["x"][1] @ w - task["y"][1]) ** 2).mean(),  # noqa: ARG005
        init=lambda lam, task: zeros(lam),  # noqa: ARG005
    )


def engine_of(name: str) -> Engine:
    """Return the engine of a ridge problem."""
    if name == "ridge":
        return Unrolled()
    return Implicit(solver=ConjugateGradient(tolerance=1e-5, steps=40), stationarity=None)


def torch_ridge(name: str) -> Step:
    """Differentiate ours."""
    problem = ridge_problem(torch.exp, torch.zeros_like)
    descent, engine = GradientDescent(step_size=RIDGE_ETA), engine_of(name)
    lam = torch.full((RIDGE_COLUMNS,), PENALTY).log().requires_grad_()

    def step(k: int) -> tuple[float, float]:
        value = outer_objective(
            problem, descent, lam, tensors(name, k), steps=STEPS[name], engine=engine
        )
        return answer(value, torch.autograd.grad(value, [lam]))

    return step


def torch_ridge_by_hand(name: str) -> Step:
    """Write the same loop in plain PyTorch."""
    problem = ridge_problem(torch.exp, torch.zeros_like)
    lam = torch.full((RIDGE_COLUMNS,), PENALTY).log().requires_grad_()

    def step(k: int) -> tuple[float, float]:
        task = tensors(name, k)
        w = torch.zeros_like(lam).requires_grad_()
        for _ in range(STEPS[name]):
            (g,) = torch.autograd.grad(problem.inner(w, lam, task), w, create_graph=True)
            w = w - RIDGE_ETA * g
        value = problem.outer(w, lam, task)
        return answer(value, torch.autograd.grad(value, [lam]))

    return step


def torchopt_ridge(name: str) -> Step:
    """Take functional steps on one graph."""
    import torchopt

    problem = ridge_problem(torch.exp, torch.zeros_like)
    lam = torch.full((RIDGE_COLUMNS,), PENALTY).log().requires_grad_()

    def step(k: int) -> tuple[float, float]:
        task = tensors(name, k)
        rule = torchopt.sgd(lr=RIDGE_ETA)
        w = torch.zeros_like(lam).requires_grad_()
        memory = rule.init(w)
        for _ in range(STEPS[name]):
            (g,) = torch.autograd.grad(problem.inner(w, lam, task), w, create_graph=True)
            updates, memory = rule.update(g, memory, params=w, inplace=False)
            w = torchopt.apply_updates(w, updates, inplace=False)
        value = problem.outer(w, lam, task)
        return answer(value, torch.autograd.grad(value, [lam]))

    return step


def torchopt_module(name: str) -> Step:
    """Solve in its implicit module, by `torch.optim.SGD` and conjugate gradients, as its guide."""
    import torchopt

    problem = ridge_problem(torch.exp, torch.zeros_like)
    lam = torch.full((RIDGE_COLUMNS,), PENALTY).log().requires_grad_()

    class Ridge(
        torchopt.nn.ImplicitMetaGradientModule,
        linear_solve=torchopt.linear_solve.solve_cg(rtol=1e-5, atol=0),
    ):
        def __init__(self, penalty: Tensor) -> None:
            super().__init__()
            self.penalty = penalty
            self.w = torch.nn.Parameter(torch.zeros_like(penalty))

        def objective(self, task: dict[str, Tensor]) -> Any:
            return problem.inner(self.w, self.penalty, task)

        def solve(self, task: dict[str, Tensor]) -> Any:
            optimizer = torch.optim.SGD([self.w], lr=RIDGE_ETA)
            with torch.enable_grad():
                for _ in range(STEPS[name]):
                    loss = self.objective(task)
                    optimizer.zero_grad()
                    loss.backward(inputs=[self.w])
                    optimizer.step()
            return self

    def step(k: int) -> tuple[float, float]:
        task = tensors(name, k)
        value = problem.outer(Ridge(lam).solve(task).w, lam, task)
        return answer(value, torch.autograd.grad(value, [lam]))

    return step


def torchopt_root(name: str) -> Step:
    """Solve by a loop by hand, whose root it differentiates by conjugate gradients."""
    import torchopt

    problem = ridge_problem(torch.exp, torch.zeros_like)
    lam = torch.full((RIDGE_COLUMNS,), PENALTY).log().requires_grad_()

    def stationary(w: tuple[Tensor, ...], lam: Tensor, task: dict[str, Tensor]) -> Any:
        return (torch.func.grad(problem.inner)(w[0], lam, task),)

    @torchopt.diff.implicit.custom_root(
        stationary, argnums=1, solve=torchopt.linear_solve.solve_cg(rtol=1e-5, atol=0)
    )
    def solve(w: tuple[Tensor, ...], lam: Tensor, task: dict[str, Tensor]) -> Any:
        (x,) = w
        for _ in range(STEPS[name]):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (g,) = torch.autograd.grad(problem.inner(x, lam.detach(), task), x)
            x = x - RIDGE_ETA * g
        return (x.detach().requires_grad_(),)

    def step(k: int) -> tuple[float, float]:
        task = tensors(name, k)
        (w,) = solve((torch.zeros_like(lam),), lam, task)
        value = problem.outer(w, lam, task)
        return answer(value, torch.autograd.grad(value, [lam]))

    return step


# --- JAX ------------------------------------------------------------------------------------------


def jax_network(name: str) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Return the parameters of the 1-40-40-1 network and its loss, from PyTorch's start."""
    import jax
    import jax.numpy as jnp

    lam = {k: jnp.asarray(p.detach().numpy()) for k, p in network(name).named_parameters()}

    def loss(w: dict[str, Any], task: dict[str, Any], support: bool) -> Any:
        rows = slice(None, SHOTS) if support else slice(SHOTS, None)
        x, y = task["x"][rows], task["y"][rows]
        for layer in ("0", "2"):
            x = jax.nn.relu(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
        return ((x @ w["4.weight"].T + w["4.bias"] - y) ** 2).mean()

    return lam, loss


def jax_step(objective: Callable[[Any, Any], Any], lam: Any, name: str) -> Step:
    """Return the step of an objective (λ, task), compiled as a whole."""
    import jax

    both = jax.jit(jax.value_and_grad(objective))

    def step(k: int) -> tuple[float, float]:
        value, grad = both(lam, arrays(name, k))
        flat = np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(grad)])
        return float(value), float(np.linalg.norm(flat))

    step.compiled = both  # type: ignore[attr-defined]
    return step


def jax_maml(name: str) -> Step:
    """Differentiate ours, within one `jit`."""
    lam, loss = jax_network(name)
    problem = over_tasks(
        Problem(
            inner=lambda w, lam, task: loss(w, task, True),  # noqa: ARG005
            outer=lambda w, lam, task: loss(w, task, False),  # noqa: ARG005
            init=lambda lam, task: lam,  # noqa: ARG005
        )
    )
    descent = GradientDescent(step_size=ETA)

    def objective(lam: Any, task: Any) -> Any:
        return outer_objective(problem, descent, lam, task, steps=STEPS[name], engine=Unrolled())

    return jax_step(objective, lam, name)


def jax_maml_by_hand(name: str) -> Step:
    """Write the same loop in plain JAX."""
    import jax

    lam, loss = jax_network(name)

    def objective(lam: Any, tasks: Any) -> Any:
        def of_task(task: Any) -> Any:
            w = lam
            for _ in range(STEPS[name]):
                slope = jax.grad(loss)(w, task, True)
                w = jax.tree.map(lambda x, g: x - ETA * g, w, slope)
            return loss(w, task, False)

        return jax.vmap(of_task)(tasks).mean()

    return jax_step(objective, lam, name)


def jax_ridge(name: str) -> Step:
    """Differentiate ours, within one `jit`."""
    import jax.numpy as jnp

    problem, engine = ridge_problem(jnp.exp, jnp.zeros_like), engine_of(name)
    descent, lam = GradientDescent(step_size=RIDGE_ETA), jnp.log(jnp.full(RIDGE_COLUMNS, PENALTY))

    def objective(lam: Any, task: Any) -> Any:
        return outer_objective(problem, descent, lam, task, steps=STEPS[name], engine=engine)

    return jax_step(objective, lam, name)


def jax_ridge_by_hand(name: str) -> Step:
    """Write the same loop in plain JAX."""
    import jax
    import jax.numpy as jnp

    problem, lam = ridge_problem(jnp.exp, jnp.zeros_like), jnp.log(jnp.full(RIDGE_COLUMNS, PENALTY))

    def objective(lam: Any, task: Any) -> Any:
        def body(w: Any, _: Any) -> tuple[Any, None]:
            return w - RIDGE_ETA * jax.grad(problem.inner)(w, lam, task), None

        w, _ = jax.lax.scan(body, jnp.zeros_like(lam), None, length=STEPS[name])
        return problem.outer(w, lam, task)

    return jax_step(objective, lam, name)


def jaxopt_ridge(name: str) -> Step:
    """Solve by jaxopt's gradient descent, unrolled or by the implicit function theorem."""
    import jax.numpy as jnp
    import jaxopt

    problem, lam = ridge_problem(jnp.exp, jnp.zeros_like), jnp.log(jnp.full(RIDGE_COLUMNS, PENALTY))
    implicit = name != "ridge"
    solver = jaxopt.GradientDescent(
        fun=lambda w, lam, task: problem.inner(w, lam, task),
        stepsize=RIDGE_ETA,
        maxiter=STEPS[name],
        tol=0.0,
        acceleration=False,
        implicit_diff=implicit,
        unroll=not implicit,
        implicit_diff_solve=lambda product, b: jaxopt.linear_solve.solve_cg(product, b, tol=1e-5),
    )

    def objective(lam: Any, task: Any) -> Any:
        w = solver.run(jnp.zeros_like(lam), lam, task).params
        return problem.outer(w, lam, task)

    return jax_step(objective, lam, name)


def optimistix_ridge(name: str) -> Step:
    """Minimise by optimistix's gradient descent, unrolled or by the implicit function theorem."""
    import jax.numpy as jnp
    import lineax
    import optimistix

    problem, lam = ridge_problem(jnp.exp, jnp.zeros_like), jnp.log(jnp.full(RIDGE_COLUMNS, PENALTY))
    solver = optimistix.GradientDescent(learning_rate=RIDGE_ETA, rtol=0.0, atol=0.0)
    adjoint = (
        optimistix.RecursiveCheckpointAdjoint()
        if name == "ridge"
        else optimistix.ImplicitAdjoint(linear_solver=lineax.CG(rtol=1e-5, atol=0.0))
    )

    def objective(lam: Any, task: Any) -> Any:
        w = optimistix.minimise(
            lambda w, args: problem.inner(w, *args),
            solver,
            jnp.zeros_like(lam),
            args=(lam, task),
            max_steps=STEPS[name] + 1,  # the first one evaluates the start
            adjoint=adjoint,
            tags=frozenset({lineax.positive_semidefinite_tag}),
            throw=False,
        ).value
        return problem.outer(w, lam, task)

    return jax_step(objective, lam, name)


SIDES: dict[str, dict[str, dict[str, Callable[[str], Step]]]] = {
    "torch": {
        "sinusoid": {
            "by hand": torch_maml_by_hand,
            "ours": torch_maml,
            "higher": higher_maml,
            "torchopt": torchopt_maml,
        },
        "omniglot": {"by hand": torch_maml_by_hand, "ours": torch_maml, "higher": higher_maml},
        "ridge": {"by hand": torch_ridge_by_hand, "ours": torch_ridge, "torchopt": torchopt_ridge},
        "ridge, implicit": {
            "ours": torch_ridge,
            "torchopt": torchopt_module,
            "torchopt, loop by hand": torchopt_root,
        },
    },
    "jax": {
        "sinusoid": {"by hand": jax_maml_by_hand, "ours": jax_maml},
        "ridge": {
            "by hand": jax_ridge_by_hand,
            "ours": jax_ridge,
            "jaxopt": jaxopt_ridge,
            "optimistix": optimistix_ridge,
        },
        "ridge, implicit": {
            "ours": jax_ridge,
            "jaxopt": jaxopt_ridge,
            "optimistix": optimistix_ridge,
        },
    },
}
