r"""Which prior a trained gradient descent stands for on given tasks, and how far from exact that reading is.

On a quadratic inner loss descent finds a posterior mode (:mod:`bayesmeta.inference.implicit_prior`). A network's loss
is not quadratic: what is computed here is the prior for its second-order model at the start, and how far the point that
descent reaches is from the mode under it.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesmeta.inference.descent import SGD, Preconditioned
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.implicit import Product, derivatives
from bayesmeta.inference.implicit_prior import implied, root
from bayesmeta.types import Context

_ELEMENTS = 1 << 25  # of the basis of directions


@dataclass(frozen=True)
class LocalPrior:
    r"""The prior that ``steps`` steps from the start stand for, along ``E`` of the ``D = dim`` directions of each task.

    ``curvature [B, E]``, the largest first, are eigenvalues of ``R H R`` with ``H`` the Hessian of the inner loss at
    the start and ``R`` the root of the matrix that multiplies gradients, the identity where that is a number. Steps
    that take all weights alike do so along each direction by itself: ``kept [B, E]`` is the share of the way to the
    minimum that is left, ``prior_sd`` and ``posterior_sd`` the standard deviations of the implied prior and posterior.
    They are those of a model whose negative log-likelihood is the inner loss, and NaN where there is none.

    ``largest [B]`` is the largest rate times the largest curvature and ``valid [B]`` whether every direction has a
    prior, for one step ``largest < 1``. ``decided [B]`` is the effective number of directions that data decide,
    ``sum(1 - kept)``, of those looked at and with each term in [0, 1].

    Two numbers are 0 where the loss is quadratic. ``deviation [B]`` is the distance from the point that descent reaches
    to the mode, under the implied prior, of the second-order model, as a share of that mode's distance from the start;
    one step reaches that mode on any loss. ``mismatch [B]`` is how far the loss's gradient at the point is from the
    second-order model's, as a share of the gradient at the start: what is left of the condition for the mode of the
    loss itself.
    """

    steps: int
    dim: int
    curvature: Float[Tensor, "B E"]
    kept: Float[Tensor, "B E"]
    prior_sd: Float[Tensor, "B E"]
    posterior_sd: Float[Tensor, "B E"]
    largest: Float[Tensor, "B"]
    valid: Bool[Tensor, "B"]
    decided: Float[Tensor, "B"]
    deviation: Float[Tensor, "B"]
    mismatch: Float[Tensor, "B"]


@torch.no_grad()
def local_prior(inference: GradientDescent, context: Context, *, directions: int = 40) -> LocalPrior:
    """The prior that descent stands for on the tasks of ``context``, in float64.

    ``directions`` bounds ``E``. Where the weights are more, the eigenvalues are those of the Hessian within the space
    that its products with the gradient span (Lanczos 1950), which holds every point that up to ``directions`` steps can
    reach; the largest come out exact, directions left out are the flattest or ones that no step explores. Costs as many
    gradients of the gradient as there are directions.

    Raises ValueError for descent that no Gaussian prior corresponds to, on any loss: no steps, momentum or Adam, a rate
    of each weight that differs from step to step, negative rates of some weights, no data.
    """
    half, rates = _step_matrix(inference)
    if not bool(context.mask.any(1).all()):
        raise ValueError("local_prior: expected at least one datum of every task, got a task with none")
    inference = copy.deepcopy(inference).double()
    context = Context(context.x.double(), context.y.double(), context.mask)
    start = inference.init(context.batch).z
    reached = inference.update(inference.init(context.batch), context)
    gradient, product = derivatives(lambda z: inference.loss(z, reached.data), start)
    gradient = gradient.detach()

    mode, state = start, inference.optimizer.start(start)
    for index in range(inference.steps):
        slope = gradient + product(mode - start)
        mode, state = inference.optimizer.step(mode, slope, state, index)

    curvature, axes = spectrum(lambda v: _times(half, product(_times(half, v))), _times(half, gradient), directions)
    found = implied(curvature, rates, inference.steps)
    length = _times(half, axes).norm(dim=-1)
    slope, _ = derivatives(lambda z: inference.loss(z, reached.data), reached.z)
    off, tiny = slope - gradient - product(reached.z - start), torch.finfo(start.dtype).tiny
    return LocalPrior(
        inference.steps,
        start.shape[-1],
        curvature,
        found.kept,
        found.prior.sqrt() * length,
        found.posterior.sqrt() * length,
        rates.amax() * curvature.amax(-1),
        found.valid.all(-1),
        (1 - found.kept).clamp(0, 1).sum(-1),
        (reached.z - mode).norm(dim=-1) / (mode - start).norm(dim=-1).clamp_min(tiny),
        off.detach().norm(dim=-1) / gradient.norm(dim=-1).clamp_min(tiny),
    )


def implied_table(inference: GradientDescent, context: Context) -> str:
    """:func:`local_prior` in plain words, or why there is none. Medians over tasks, with the range.

    Of many weights and tasks fewer directions than 40 are looked at, so that they fit into 256 MiB.
    """
    weights = inference.model.prior(1).event_shape[0] * context.batch
    try:
        found = local_prior(inference, context, directions=max(4, min(40, _ELEMENTS // weights)))
    except ValueError as error:
        return f"These steps are those of no Gaussian prior: {error}"
    tasks, ok = len(found.valid), int(found.valid.sum())
    flat = found.curvature.abs().argmin(-1, keepdim=True)
    lowest = found.largest * found.curvature[:, -1] / found.curvature[:, 0]
    rows = [
        ("largest rate x curvature", found.largest, "below 1 no step overshoots the data's minimum"),
        ("lowest rate x curvature", lowest, "below 0 the loss is not convex there"),
        ("directions data decide, at least", found.decided, f"of {found.dim}; the others stay at the learned start"),
        ("way left, steepest direction", found.kept[:, 0], "0: the data's minimum, 1: the learned start"),
        ("prior sd, steepest direction", found.prior_sd[:, 0], "how far from the start a task's weights are expected"),
        ("prior sd, flattest direction", found.prior_sd.gather(1, flat), "without curvature the root of rate x steps"),
        ("posterior sd, steepest direction", found.posterior_sd[:, 0], "implied, not computed: no calibration"),
        ("distance from the implied mode", found.deviation, "per distance moved; 0 on quadratic losses"),
        ("gradient not of second order", found.mismatch, "where the steps end; 0 on quadratic losses"),
    ]
    head = [
        f"{found.steps} gradient step{'s' * (found.steps != 1)} read as the mode of a posterior, at the learned start: "
        f"median over {tasks} tasks (lowest to highest).",
        f"The steps are those of a prior for {ok} of {tasks} tasks"
        + ("." if ok == tasks else "; for the others they overshoot, as under no prior."),
    ]
    return "\n".join([*head, *(f"  {name:<34}{_range(values):<34}{meaning}" for name, values, meaning in rows)])


def spectrum(
    product: Product, start: Float[Tensor, "B D"], directions: int
) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E D"]]:
    """Eigenvalues of each task's symmetric matrix, the largest first, and its eigenvectors as rows.

    They are Rayleigh and Ritz's in the space that ``E = min(D, directions)`` products with ``start`` span, kept
    orthogonal at full cost. Where the products lead nowhere new the space is continued in a fixed random direction, so
    that with ``E = D`` all eigenvalues are found.
    """
    batch, dim = start.shape
    size = min(dim, directions)
    noise = torch.randn(size + 1, dim, generator=torch.Generator().manual_seed(0)).to(start)
    basis = start.new_zeros(batch, 0, dim)
    small = start.new_zeros(batch, size, size)
    fresh, _ = _orthogonal(start, noise[0].expand_as(start), basis)
    for index in range(size):
        basis = torch.cat([basis, fresh.unsqueeze(1)], 1)
        image = product(fresh)
        small[:, index, index] = (fresh * image).sum(-1)
        if index + 1 < size:
            fresh, length = _orthogonal(image, noise[index + 1].expand_as(start), basis)
            small[:, index, index + 1] = small[:, index + 1, index] = length
    values, vectors = torch.linalg.eigh(small)
    return values.flip(-1), (vectors.mT @ basis).flip(-2)


def _orthogonal(v: Tensor, other: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vector of what of ``v`` is not in the basis, and its length; where that is nothing, of ``other``."""

    def outside(u: Tensor) -> Tensor:
        for _ in range(2):  # once leaves what round-off left
            u = u - (basis.mT @ (basis @ u.unsqueeze(-1))).squeeze(-1)
        return u

    rest, size = outside(v), v.norm(dim=-1, keepdim=True)
    length = rest.norm(dim=-1, keepdim=True)
    nothing = length <= 1e-10 * size
    rest = torch.where(nothing, outside(other), rest)
    return rest / rest.norm(dim=-1, keepdim=True), torch.where(nothing, 0.0, length).squeeze(-1)


def _step_matrix(inference: GradientDescent) -> tuple[Tensor, Tensor]:
    """The root of the matrix that multiplies gradients, ``()``, ``[D]`` or ``[D, D]``, and rates ``()`` or ``[k]``."""
    optimizer, steps = inference.optimizer, inference.steps
    if steps < 1:
        raise ValueError("expected at least one step, got 0")
    one = torch.ones((), dtype=torch.float64)
    if isinstance(optimizer, Preconditioned) and optimizer.matrix.ndim == 2:
        return root(optimizer.matrix.detach().double()), one
    if not isinstance(optimizer, SGD):
        raise ValueError(
            f"expected plain steps, SGD or Preconditioned with one matrix for all tasks, got {type(optimizer).__name__}"
        )
    rate = optimizer.rate.detach().double()
    if rate.numel() == 1:
        return one, rate.reshape(())
    if rate.ndim == 2 and rate.shape[1] == 1:
        return one, rate[[min(index, len(rate) - 1) for index in range(steps)], 0]
    if rate.ndim == 2 and len(rate) > 1:
        raise ValueError("expected rates that differ by weight or by step, got rates that differ by both")
    rate = rate.reshape(-1)
    if bool((rate < 0).any()):
        raise ValueError(f"expected rates >= 0, got {int((rate < 0).sum())} of {len(rate)} weights with a negative one")
    return rate.sqrt(), one


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return v @ matrix if matrix.ndim == 2 else matrix * v


def _range(values: Tensor) -> str:
    known = values[values.isfinite()]
    if not len(known):
        return "-"
    return f"{known.median():.3g} ({known.min():.3g} to {known.max():.3g})"
