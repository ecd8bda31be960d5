r"""Where meta-training ends on models that can be solved by hand: the learned rate, and four algorithms' starts.

    OMP_NUM_THREADS=1 python -m benchmarks.fixed_points

**Rates.** MAML with one learned inner rate on the normal-normal family (prior and noise of standard deviation 1), by
its own training loop. The rate with the least risk makes ``k`` steps the exact posterior mean: with ``c`` the inner
loss's curvature and ``w = (noise^2 / n) / (prior_scale^2 + noise^2 / n)``, it is ``(1 - w^{1/k}) / c``, and the risk
the posterior variance. A rate learned with n data in the support is too small or too large with another number.

**Starts.** On linear tasks ``y = X z + noise`` with designs of their own, ``k`` steps lead to ``M_j theta + c_j``, and
each algorithm's update has one fixed point (subscript q: queries; all sums over tasks):

    MAML      [sum (X_q M)^T X_q M]^{-1} sum (X_q M)^T (y_q - X_q c)
    FOMAML    [sum X_q^T X_q M]^{-1} sum X_q^T (y_q - X_q c)
    Reptile   [sum (I - M)]^{-1} sum c
    iMAML     as MAML, with M = (I + H / lambda)^{-1} and c the rest of the posterior mode
    evidence  [sum X^T S^{-1} X]^{-1} sum X^T S^{-1} y,    S = noise^2 I + X Sigma X^T

The last is what the hierarchical model says, the maximum of the marginal likelihood; all are unbiased and linear in y,
so that by Gauss and Markov none of the others has a smaller error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.algorithms.imaml import IMAML
from bayesmeta.algorithms.maml import MAML
from bayesmeta.algorithms.reptile import Reptile
from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.implicit_prior import adaptation
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context, Spec
from benchmarks._timing import table

LINEAR = Network(widths=())

# --- rates ---------------------------------------------------------------------------------------------------------


def shrinkage(family: NormalNormal, n: int) -> float:
    """``w``, the weight of the prior's mean in the posterior's after ``n`` data."""
    noise = family.model.noise**2 / n
    return noise / (float(family.model.covariance) + noise)


def curvature(family: NormalNormal, n: int, reduction: str) -> float:
    """Of the inner loss of ``y = weight x + bias``, ``x = 1``, along ``weight + bias``; the difference is flat."""
    return 2 * (n if reduction == "sum" else 1) / family.model.noise**2


def best_rate(family: NormalNormal, n: int, steps: int, reduction: str) -> float:
    """The rate at which ``steps`` steps find the posterior's mean."""
    return (1 - shrinkage(family, n) ** (1 / steps)) / curvature(family, n, reduction)


def bayes_risk(family: NormalNormal, n: int) -> float:
    """The posterior's variance, the least expected squared error."""
    return float(family.model.covariance) * shrinkage(family, n)


def excess_risk(family: NormalNormal, n: int, kept: float, mean: float | None = None) -> float:
    """By how much the risk of ``kept mean + (1 - kept) average`` is above Bayes', ``mean`` None being the prior's."""
    spread = float(family.model.covariance) + family.model.noise**2 / n
    off = 0.0 if mean is None else mean - float(family.model.mean)
    return (kept - shrinkage(family, n)) ** 2 * spread + (kept * off) ** 2


def rate_learner(family: NormalNormal, n: int, steps: int, reduction: str, **episodes: object) -> MAML:
    """MAML with one learned rate and known noise on a linear network; its weights are the same every time."""
    with torch_seeded(0):
        learner = MAML(
            family.spec,
            network=LINEAR,
            episodes=replace(Episodes(shots=n, queries=1), **episodes),
            steps=steps,
            rate=0.1 * best_rate(family, n, steps, reduction),
            learn_rate="one",
            objective="nll",
            reduction=reduction,
            noise=family.model.noise,
            learn_noise=False,
        )
    learner.setup(family, 0)
    return learner


def learned(learner: MAML, family: NormalNormal, n: int) -> tuple[float, float, float]:
    """The rate that was learned, the share of the start that its steps keep with ``n`` data, and the start."""
    rate = learner.inference.optimizer.rate.item()
    kept = (1 - rate * curvature(family, n, learner.inference.reduction)) ** learner.inference.steps
    return rate, kept, learner.inference.model.mean.sum().item()


def rate_rows(steps: int, reduction: str, sizes: tuple[int, ...], updates: int) -> list[list[str]]:
    """A row for each number of data: the rate, its risk, and the risk of the rate learned with 5."""
    family = NormalNormal(noise=1.0)
    options = {"meta_batch": 200, "updates": updates, "lr": 0.01, "lr_half": 100}
    learners = {n: rate_learner(family, n, steps, reduction, **options) for n in {*sizes, 5}}
    for learner in learners.values():
        learner.step()
    rows = []
    for n in sizes:
        rate, kept, start = learned(learners[n], family, n)
        best, least = best_rate(family, n, steps, reduction), bayes_risk(family, n)
        _, other, at = learned(learners[5], family, n)
        risk, elsewhere = (least + excess_risk(family, n, *found) for found in ((kept, start), (other, at)))
        cells = [f"{rate:.4f}", f"{best:.4f}", f"{risk:.5f}", f"{least:.5f}", f"{elsewhere:.5f}"]
        rows.append([f"k = {steps}, {reduction}, n = {n}", *cells, f"{100 * (elsewhere / least - 1):.1f} %"])
    return rows


# --- starts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """Tasks on each of which an inner loop leads from ``theta`` to ``kept theta + moved``, and their queries."""

    kept: Float[Tensor, "J D D"]
    moved: Float[Tensor, "J D"]
    x: Float[Tensor, "J Q D"]
    y: Float[Tensor, "J Q"]


def descent(x: Tensor, y: Tensor, query: tuple[Tensor, Tensor], rate: float, steps: int) -> Affine:
    """``steps`` steps on the mean squared error of ``x [J, N, D]``, ``y [J, N]``."""
    hessian = 2 * x.mT @ x / x.shape[1]
    force = 2 * x.mT @ y.unsqueeze(-1) / x.shape[1]
    moved = sum(adaptation(hessian, rate, i) @ (rate * force) for i in range(steps))
    return Affine(adaptation(hessian, rate, steps), moved.squeeze(-1), *query)


def mode(x: Tensor, y: Tensor, query: tuple[Tensor, Tensor], scale: float, noise: float) -> Affine:
    """The posterior's mode under ``N(theta, scale^2 I)``."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    kept = torch.linalg.inv(eye + scale**2 / noise**2 * x.mT @ x)
    return Affine(kept, (kept @ (scale**2 / noise**2 * x.mT @ y.unsqueeze(-1))).squeeze(-1), *query)


def maml_point(tasks: Affine) -> Tensor:
    seen = tasks.x @ tasks.kept
    return _solve(seen, seen, _left(tasks))


def fomaml_point(tasks: Affine) -> Tensor:
    return _solve(tasks.x, tasks.x @ tasks.kept, _left(tasks))


def reptile_point(tasks: Affine) -> Tensor:
    eye = torch.eye(tasks.kept.shape[-1], dtype=tasks.kept.dtype)
    return torch.linalg.solve((eye - tasks.kept).sum(0), tasks.moved.sum(0))


def evidence_point(x: Tensor, y: Tensor, scale: float, noise: float) -> Tensor:
    covariance = noise**2 * torch.eye(x.shape[1], dtype=x.dtype) + scale**2 * x @ x.mT
    return _solve(torch.linalg.solve(covariance, x), x, y)


def _left(tasks: Affine) -> Tensor:
    return tasks.y - (tasks.x @ tasks.moved.unsqueeze(-1)).squeeze(-1)


def _solve(weights: Tensor, design: Tensor, target: Tensor) -> Tensor:
    right = (weights.mT @ target.unsqueeze(-1)).sum(0).squeeze(-1)
    return torch.linalg.solve((weights.mT @ design).sum(0), right)


@dataclass(frozen=True)
class LinearTasks:
    """``shots`` and ``queries`` data of linear tasks with weights and an intercept from ``N(theta, scale^2 I)``."""

    theta: Float[Tensor, "D"]
    x: Float[Tensor, "J N X"]
    y: Float[Tensor, "J N"]
    shots: int
    scale: float = 0.7
    noise: float = 0.6
    rate: float = 0.125
    steps: int = 3

    @staticmethod
    def draw(tasks: int = 6, shots: int = 5, queries: int = 4, dim: int = 2, seed: int = 0) -> "LinearTasks":
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "dtype": torch.float64}
        x = torch.randn(tasks, shots + queries, dim, **options) * torch.linspace(0.4, 1.6, dim, dtype=torch.float64)
        theta = torch.linspace(-1, 1, dim + 1, dtype=torch.float64)
        drawn = LinearTasks(theta, x, torch.zeros(tasks, shots + queries, dtype=torch.float64), shots)
        z = theta + drawn.scale * torch.randn(tasks, dim + 1, **options)
        y = (drawn.design @ z.unsqueeze(-1)).squeeze(-1) + drawn.noise * torch.randn(drawn.y.shape, **options)
        return replace(drawn, y=y)

    @property
    def design(self) -> Tensor:
        """The inputs and a column of ones."""
        return torch.cat([self.x, torch.ones_like(self.x[..., :1])], -1)

    @property
    def contexts(self) -> tuple[Context, Context]:
        data = Context.of(self.x, self.y.unsqueeze(-1))
        return data.rows(0, self.shots), data.rows(self.shots, data.size)

    def points(self, y: Tensor) -> dict[str, Tensor]:
        """Every method's fixed point, were the targets ``y``."""
        x, n = self.design, self.shots
        own, query = (x[:, :n], y[:, :n]), (x[:, n:], y[:, n:])
        steps = descent(*own, query, self.rate, self.steps)
        return {
            "MAML": maml_point(steps),
            "FOMAML": fomaml_point(steps),
            "Reptile": reptile_point(descent(x, y, query, self.rate, self.steps)),
            "iMAML": maml_point(mode(*own, query, self.scale, self.noise)),
            "evidence": evidence_point(x, y, self.scale, self.noise),
        }

    def errors(self) -> dict[str, float]:
        """The exact root mean squared error of every point over weights and noise: they are linear in ``y``."""
        x = self.design
        covariance = self.noise**2 * torch.eye(x.shape[1], dtype=x.dtype) + self.scale**2 * x @ x.mT
        weights = torch.func.jacrev(self.points)(self.y)
        return {name: math.sqrt(torch.einsum("djn,jnm,djm->", w, covariance, w)) for name, w in weights.items()}


def learners(tasks: LinearTasks) -> dict[str, Learner]:
    """The library's algorithms on these tasks, in float64, with their own losses."""
    spec = Spec("linear", tasks.x.shape[-1], 1, ())
    known = {"network": LINEAR, "noise": tasks.noise, "learn_noise": False}
    inner = {"steps": tasks.steps, "rate": tasks.rate}
    found = {
        "MAML": MAML(spec, **known, **inner),
        "FOMAML": MAML(spec, first_order=True, **known, **inner),
        "Reptile": Reptile(spec, inner_batch=None, **known, **inner),
        "iMAML": IMAML(spec, scale=tasks.scale, steps=2, **known),
    }
    for learner in found.values():
        learner.inference.double()
        with torch.no_grad():  # in all digits
            learner.inference.model.output.log_noise.fill_(math.log(tasks.noise))
            learner.inference.model.log_scale.fill_(math.log(tasks.scale))
    return found


def meta_gradient(learner: Learner, tasks: LinearTasks) -> Callable[[Tensor], Tensor]:
    """The gradient that the algorithm's optimiser is given, as a function of the network's weights."""

    def gradient(theta: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(theta, learner.parameters)
        return nn.utils.parameters_to_vector(torch.autograd.grad(learner.loss(*tasks.contexts), learner.parameters))

    return gradient


def root(gradient: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Where an affine function is zero, by one Newton step."""
    zero, eye = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    at = gradient(zero)
    slope = torch.stack([gradient(one) - at for one in eye], -1)
    return -torch.linalg.solve(slope, at)


def start_rows() -> list[list[str]]:
    """A row for each method: where its class ends, the formula, and how far both are from the truth."""
    tasks = LinearTasks.draw()
    points, errors, classes = tasks.points(tasks.y), tasks.errors(), learners(tasks)
    rows = []
    for name, point in points.items():
        found = root(meta_gradient(classes[name], tasks), len(point)) if name in classes else None
        cells = ["-", "-"] if found is None else [_vector(found), f"{float((found - point).abs().max()):.0e}"]
        rows.append([name, cells[0], _vector(point), cells[1], f"{errors[name]:.4f}"])
    return rows


def _vector(values: Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())


def main(updates: int = 1500) -> None:
    torch.set_num_threads(1)
    head = ["", "learned rate", "best rate", "its risk", "Bayes risk", "risk of the rate of n = 5", "excess"]
    kinds = ((1, "mean"), (3, "mean"), (1, "sum"))
    print(table(head, [row for kind in kinds for row in rate_rows(*kind, (1, 5, 20), updates)]))
    print(table(["", "zero of the class's gradient", "formula", "difference", "rms error of theta"], start_rows()))


if __name__ == "__main__":
    main()
