"""A run as one torch.export program: images and labels in, probabilities out, no code of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.predict.onnx_file import onnx_bytes, onnx_program
from bilevel_apps.runs.load import TrainedRun, load_trained
from bilevel_apps.runs.pretrained import PREFIX
from bilevel_apps.system.files import check_writable, write_whole
from bilevel_meta.adapt import FewShotLearner, representation_learner
from bilevel_models import heads
from bilevel_models.heads.solver import CLASSES

__all__ = ["CARD", "TOLERANCE", "Exported", "FewShotProgram", "export_run"]

TOLERANCE = 1e-5
NEWTON_STEPS, CG_STEPS = 6, 12  # of heads at their optimum: a program has no loops
SUFFIXES = (".pt2", ".onnx")
CARD = "bilevel.json"  # beside the program in the file: what it is, and what it takes
# Support images a class and queries of what is traced, and of what the file is checked on.
TRACED, CHECKED = (2, 3), ((1, 1), (1, 6), (4, 9))


@final
@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and how far its probabilities are from the run's at most."""

    path: Path
    way: int
    difference: float


@final
class FewShotProgram(nn.Module):
    """Encode, fit a head, predict: as `FewShotLearner`, in operations that can be exported.

    Heads at their optimum are those of `heads.HeadSolver`. Those of T steps are, in float64,

    K = s² h hᵀ + 1,  A_0 = 0,  A_{t+1} = A_t - (η/n) (softmax(K A_t) - Y),
    probabilities = softmax((s² q hᵀ + 1) A_T).

    Args:
        learner: what it computes.
        way: number of classes.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eq. 10, in the span of the support features.
    """

    def __init__(self, learner: FewShotLearner, way: int) -> None:
        super().__init__()
        self.learner, self.way = learner, way
        self.backbone = learner.encoder.backbone  # so that the weights are the module's own

    def forward(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """Return probabilities (m, way).

        Args:
            support: images (n, channels, height, width) in [0, 1].
            labels: 0 … way-1, int64 (n,).
            query: images (m, channels, height, width).
        """
        h, q = self.learner.features(support, query)
        targets = (labels[:, None] == torch.arange(self.way, device=labels.device)).to(h)
        if self.learner.steps is None:
            return torch.softmax(self._solved(h, targets, q), dim=-1)
        square, size = self.learner.scale**2, self.learner.step_size / h.shape[0]
        gram, a = square * (h @ h.mT) + 1, torch.zeros_like(targets)
        for _ in range(self.learner.steps):
            a = a - size * (torch.softmax(gram @ a, dim=-1) - targets)
        return torch.softmax((square * (q @ h.mT) + 1) @ a, dim=-1)

    def _solved(self, h: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """Return the logits of `heads.HeadSolver` in single operations, for one episode."""
        solver = self.learner.solver
        if solver is None:
            raise ValueError("the learner takes T steps: give steps")
        r, beta, rho = (
            x.detach().double().exp()
            for x in (solver.log_shrinkage, solver.log_temperature, solver.log_decay)
        )
        counts = y.sum(dim=0)
        share = y @ (1 / (counts + r))
        centre = (CLASSES * solver.running_mean.double() + share @ h) / (CLASSES + share.sum())
        x = h - centre
        means = (x.mT @ y) / (counts + r)
        bias = -0.5 * beta * means.square().sum(dim=0)
        prior, weights = beta * (x @ means) + bias, y @ (1 / counts)
        a = _optimum(x @ x.mT, prior, y, weights[:, None], rho)
        return (q - centre) @ (beta * means + x.mT @ a) + bias


def _optimum(gram: Tensor, prior: Tensor, y: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """Return A with ρ A + C (softmax(prior + K A) - Y) = 0, as `heads.solve` does.

    In products and sums alone, a fixed number of them, which every format of programs knows: Newton
    steps by conjugate gradients without a preconditioner. Of four step sizes each takes the best.
    """
    a = u = torch.zeros_like(prior)
    for _ in range(NEWTON_STEPS):
        p = torch.softmax(prior + u, dim=-1)
        step, moved = _newton_step(gram, p, c, rho, c * (y - p) - rho * a)
        tried = [(a + size * step, u + size * moved) for size in (1.0, 0.5, 0.25, 0.1)]
        losses = torch.stack([_loss(*each, prior, y, c, rho) for each in tried])
        best = (losses == losses.min()).to(a)
        a = torch.einsum("s,snw->nw", best / best.sum(), torch.stack([each for each, _ in tried]))
        u = gram @ a
    return c * (y - torch.softmax(prior + u, dim=-1)) / rho


def _loss(a: Tensor, u: Tensor, prior: Tensor, y: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    return (0.5 * rho * a * u - c * y * torch.log_softmax(prior + u, dim=-1)).sum()


def _newton_step(
    gram: Tensor, p: Tensor, c: Tensor, rho: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """Return d with (ρ I + C (diag(p) - p pᵀ) K) d = right, and K d."""
    x = seen = torch.zeros_like(right)
    r, d, kd = right, right, gram @ right
    first = length = (r * kd).sum()
    tiny, solved = torch.finfo(right.dtype).tiny, torch.finfo(right.dtype).eps ** 2
    for _ in range(CG_STEPS):
        going = (length > solved * first).to(right)  # after that there is but rounding
        scaled = p * kd
        product = rho * d + c * (scaled - p * scaled.sum(dim=-1, keepdim=True))
        size = going * length / (product * kd).sum().clamp(min=tiny)
        x, seen, r = x + size * d, seen + size * kd, r - size * product
        kr = gram @ r
        after = (r * kr).sum()
        ahead = going * after / length.clamp(min=tiny)
        d, kd, length = r + ahead * d, kr + ahead * kd, after
    return x, seen


def export_run(trained: Path, out: Path, *, way: int | None = None) -> Exported:
    """Write a run as one program, once what the file holds gives the run's answers.

    A name that ends in .pt2 gives a file of torch.export, one that ends in .onnx gives ONNX.

    Any number of support images and of queries may be given to the program.

    Args:
        trained: the folder of a run, a checkpoint, or `pretrained:TAG`.
        out: the file.
        way: number of classes, which is fixed; None takes the run's.

    Raises:
        InputError: the run cannot be used, or the file exists or has another ending.
        RunError: the program differs from the run by more than 1e-5 in a probability, or the file
            cannot be written; nothing is left behind.
    """
    _check_out(out)
    run = load_trained(trained, "cpu")
    run.require_pictures("bilevel-export")
    way = way or run.config.episode.way
    learner = representation_learner(run.representation)
    program = _traced(FewShotProgram(learner, way), run.image_shape)
    card = json.dumps(_card(run, way))
    if out.suffix == ".onnx":
        content = onnx_bytes(program, card, CARD)
        again: Any = onnx_program(content)
    else:
        content = _torch_bytes(program, card)
        # Its own bytes, a moment old.
        again = torch.export.load(BytesIO(content)).module()  # noqa: TID251
    difference = _difference(learner, again, way, run.image_shape)
    if not difference <= TOLERANCE:
        raise RunError(
            f"{out}: not written: the exported program's probabilities differ from the run's by "
            f"{difference:.2g}, more than {TOLERANCE:g}: try another version of torch"
        )
    write_whole(out, lambda scratch: scratch.write_bytes(content))
    return Exported(path=out, way=way, difference=difference)


def _torch_bytes(program: ExportedProgram, card: str) -> bytes:
    content = BytesIO()
    torch.export.save(program, content, extra_files={CARD: card})
    return content.getvalue()


def _check_out(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    try:
        taken = out.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{out}: cannot write here ({error.strerror}): choose another") from None
    if taken:
        raise InputError(f"{out}: exists already: choose another name, or remove it")
    check_writable(out.parent)


def _traced(module: FewShotProgram, image_shape: tuple[int, ...]) -> ExportedProgram:
    example = _episode(module.way, *TRACED, image_shape)
    count, queries = Dim("images", min=1), Dim("queries", min=1)
    shapes = {"support": {0: count}, "labels": {0: count}, "query": {0: queries}}
    with torch.no_grad():
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes, strict=False)
    # Examples are the one part that is stored as a pickle, and nobody needs them.
    program.example_inputs = None
    return program


def _difference(
    learner: FewShotLearner, program: Any, way: int, image_shape: tuple[int, ...]
) -> float:
    """Return the largest difference of a probability over episodes of several sizes."""
    differences = []
    for shot, count in CHECKED:
        support, labels, query = _episode(way, shot, count, image_shape)
        try:
            expected = learner.adapt(support, labels, way).probabilities(query)
        except heads.HeadDivergenceError as error:
            raise RunError(f"no head for {way} classes of {shot}: {error}") from error
        with torch.no_grad():
            found = program(support, labels, query)
        differences.append(float((found - expected).abs().max()))
    return max(differences)


def _episode(
    way: int, shot: int, queries: int, image_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images that are told apart, but not with certainty: coarse patterns under noise."""
    height, width, channels = image_shape
    random = torch.Generator().manual_seed(shot)
    patterns = torch.rand(way, channels, 4, 4, generator=random).round()
    labels = torch.arange(way * shot + queries) % way
    images = functional.interpolate(patterns, (height, width))[labels]
    images = images.lerp(torch.rand(images.shape, generator=random), 0.6)
    n = way * shot
    return images[:n], labels[:n], images[n:]


def _card(run: TrainedRun, way: int) -> dict[str, Any]:
    height, width, channels = run.image_shape
    return {
        "inputs": {
            "support": f"images (n, {channels}, {height}, {width}) in [0, 1]",
            "labels": f"0 … {way - 1}, int64 (n,)",
            "query": f"images (m, {channels}, {height}, {width}) in [0, 1]",
        },
        "output": f"probabilities, float64 (m, {way})",
        "preprocessing": None if run.preprocessing is None else run.preprocessing.as_dict(),
        "way": way,
        "head": {"steps": run.inner.steps, "step_size": run.inner.lr},
        "normalization": run.config.model.norm,
        "checkpoint_sha256": run.sha256,
        "config": _portable(run.config),
    }


def _portable(config: Config) -> dict[str, Any]:
    """Return a configuration without what names a place on this machine."""
    record = config.model_dump(mode="json")
    for key in ("data", "tracking", "device", "threads"):
        record.pop(key)
    record["train"]["mix"] = {Path(path).name: w for path, w in config.train.mix.items()}
    weights = record["model"].get("weights")
    if weights is not None and not str(weights).startswith(PREFIX):
        record["model"]["weights"] = Path(weights).name
    return record
