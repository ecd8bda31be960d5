r"""What a belief predicts: held-out data of its task under the mixture of the model's likelihood over posterior draws.

    p(y | x, D) = 1/L \sum_l p(y | x, z_l),   z_l ~ q(z | D)

Densities and probabilities are averaged, never their logarithms or logits. The variance of the mixture splits exactly
into aleatoric, the mean of the components' variances, and epistemic, the variance of their means; the entropy of a
class into its expectation, which is aleatoric, and the mutual information of class and latent, which is epistemic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical

from bayesmeta.diagnostics import scores
from bayesmeta.diagnostics.information import marginals
from bayesmeta.inference.evidence import checked
from bayesmeta.models.task_model import TaskModel
from bayesmeta.train import seeded
from bayesmeta.types import Belief, Context

LEVELS = (0.5, 0.8, 0.95)  # of the intervals that are scored

_ELEMENTS = 1 << 22  # target values of all draws given to a likelihood at once: 16 MiB in fp32


@dataclass(frozen=True)
class Classes:
    """The predictive of ``V`` class-valued variables of each datum, of ``C`` classes; entropies are in nats.

    A Bernoulli or Categorical target has ``V = Y`` variables, a one-hot target of ``Y`` classes is one. The
    ``probabilities`` are the mixture's; ``expected_entropy`` is the mean over posterior draws of their entropies.
    """

    probabilities: Float[Tensor, "B N V C"]
    labels: Int[Tensor, "B N V"]
    expected_entropy: Float[Tensor, "B N V"]

    @property
    def entropy(self) -> Float[Tensor, "B N V"]:
        """Of the mixture: the total uncertainty."""
        return torch.special.entr(self.probabilities).sum(-1)

    @property
    def mutual_information(self) -> Float[Tensor, "B N V"]:
        """Of class and latent: the epistemic part, 0 if all draws agree and at most ``log C``."""
        return self.entropy - self.expected_entropy


@dataclass(frozen=True)
class Predictive:
    """The predictive of each query datum. Rows where ``mask`` is False hold no datum: leave them out of everything.

    ``log_density [B, N]`` of the whole target, in nats. ``pit [B, N, V]`` in [0, 1], of each coordinate (of the class
    number for one-hot targets). ``mean``, ``aleatoric`` and ``epistemic [B, N, Y]``, the latter two variances; NaN
    where the likelihood has no moments, as a Categorical, whose class numbers mean nothing. ``draws [L, B, N, Y]``.
    """

    y: Float[Tensor, "B N Y"]
    mask: Bool[Tensor, "B N"]
    log_density: Float[Tensor, "B N"]
    pit: Float[Tensor, "B N V"]
    mean: Float[Tensor, "B N Y"]
    aleatoric: Float[Tensor, "B N Y"]
    epistemic: Float[Tensor, "B N Y"]
    draws: Float[Tensor, "L B N Y"]
    classes: Classes | None


@torch.no_grad()
def predict(
    belief: Belief | Distribution, model: TaskModel, query: Context, *, draws: int = 200, seed: int = 0
) -> Predictive:
    """The predictive of the query data of the tasks that the belief (or a posterior, batch ``[B]``) is about.

    The PIT value is the mixture's cdf at the target. Where that jumps, at classes in their order, it is uniform over
    the jump, ``F(y-) + V p(y)`` (Czado, Gneiting and Held 2009); where the likelihood has no cdf it is the target's
    rank among the draws, ties broken at random, as ``(rank + V) / (L + 1)``. Over tasks it is uniform if the predictive
    is calibrated; the values of one task depend on one another. A task whose posterior draws are not all finite, as
    where a descent diverged, has NaN everywhere; the others are not touched.

    Everything random follows from ``seed``, and the global random state is left as it was. Raises ValueError where the
    belief does not fit the model, a real datum is not finite, or the likelihood's shape is not as promised.
    """
    if draws < 1:
        raise ValueError(f"predict: expected at least 1 posterior draw, got {draws}")
    posterior = belief if isinstance(belief, Distribution) else belief.posterior
    query = _filled(posterior, model, query)
    with seeded(seed):
        # Unlike sample, a normal's rsample takes a scale that is not finite.
        sample = posterior.rsample if posterior.has_rsample else posterior.sample
        z, lost = _finite(sample(torch.Size((draws,))), model)
        at_once = max(1, _ELEMENTS // query.y.numel())
        parts = [_part(model.likelihood(some, query), query, len(some)) for some in z.split(at_once)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        average = {name: found[name].sum(0) / draws for name in found.keys() - {"log_density", "draws"}}
        classes = _classes(average, query.y)
        pit = _pit(query.y, found["draws"], average.get("cdf"), classes)
    for value in (found["log_density"], found["draws"], found["mean"]):
        value[:, lost] = torch.nan
    for value in (pit, *average.values()):
        value[lost] = torch.nan
    return Predictive(
        query.y,
        query.mask,
        found["log_density"].logsumexp(0) - math.log(draws),
        pit,
        average["mean"],
        average["variance"],
        found["mean"].var(0, correction=0),
        found["draws"],
        classes,
    )


def _finite(z: Float[Tensor, "L B D"], model: TaskModel) -> tuple[Float[Tensor, "L B 1 D"], Bool[Tensor, " B"]]:
    """The draws, with the prior's in tasks where not all are finite, and which those are: no law takes NaN."""
    lost = ~z.isfinite().all(-1).all(0)
    if lost.any():
        z = torch.where(lost.unsqueeze(-1), model.prior(len(lost)).sample(torch.Size((len(z),))), z)
    return z.unsqueeze(-2), lost


def _filled(posterior: Distribution, model: TaskModel, query: Context) -> Context:
    """The query with a copy of a real datum in every padded row, since any likelihood accepts that."""
    shape, prior = (posterior.batch_shape, posterior.event_shape), model.prior(query.batch)
    if shape != (prior.batch_shape, prior.event_shape):
        raise ValueError(
            f"predict: expected a posterior like the model's prior, batch {tuple(prior.batch_shape)} and event "
            f"{tuple(prior.event_shape)}, got {tuple(shape[0])} and {tuple(shape[1])}; pass the queries of the same "
            f"tasks and the model whose latent the belief is about"
        )
    if not query.mask.any():
        raise ValueError("predict: expected at least one real query datum, got none; set their mask to True")
    query = checked("predict", query, batch=query.batch, x_dim=query.x.shape[-1], y_dim=query.y.shape[-1])
    x, y = (torch.where(query.mask.unsqueeze(-1), value, value[query.mask][0]) for value in (query.x, query.y))
    return Context(x, y, query.mask)


def _part(law: Distribution, data: Context, count: int) -> dict[str, Tensor]:
    """The likelihood of some draws: means and targets of each, ``[S, ...]``, and the sum of all else, ``[1, ...]``."""
    expected = (count, data.batch, data.size), tuple(data.y.shape[-1:])
    if (law.batch_shape, law.event_shape) != expected:
        raise ValueError(
            f"predict: expected a likelihood of batch {expected[0]} and event {expected[1]}, got "
            f"{tuple(law.batch_shape)} and {tuple(law.event_shape)}; let it depend on z [S, B, 1, D] and data.x"
        )
    each = {"draws": law.sample().to(data.y.dtype)}
    summed = _mass(law, data.y)
    each["mean"], summed["variance"] = _moments(law, each["draws"])
    sums = {name: value.sum(0, keepdim=True) for name, value in summed.items()}
    return each | sums | {"log_density": law.log_prob(data.y).logsumexp(0, keepdim=True)}


def _moments(law: Distribution, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coordinate, NaN where they are not known."""
    try:
        return law.mean, law.variance
    except NotImplementedError:
        return torch.full_like(draws, torch.nan), torch.full_like(draws, torch.nan)


def _mass(law: Distribution, y: Float[Tensor, "B N Y"]) -> dict[str, Tensor]:
    """``probabilities [S, B, N, V, C]`` and ``entropy`` if the target is a class, else its ``cdf`` if there is one."""
    margin: Any = marginals(law)
    probabilities = None
    if isinstance(law, OneHotCategorical):
        probabilities = law.probs.unsqueeze(-2)
    elif isinstance(margin, Bernoulli):
        probabilities = torch.stack([1 - margin.probs, margin.probs], -1)
    elif isinstance(margin, Categorical):
        probabilities = margin.probs
    if probabilities is not None:
        return {"probabilities": probabilities, "entropy": torch.special.entr(probabilities).sum(-1)}
    try:
        # At counts the cdf jumps by what only some laws can tell; they are ranked among the draws instead.
        return {} if margin is None or margin.support.is_discrete else {"cdf": margin.cdf(y)}
    except NotImplementedError:
        return {}


def _classes(average: dict[str, Tensor], y: Float[Tensor, "B N Y"]) -> Classes | None:
    if "probabilities" not in average:
        return None
    one_hot = average["probabilities"].shape[-2] != y.shape[-1]
    labels = y.argmax(-1, keepdim=True) if one_hot else y.long()
    return Classes(average["probabilities"], labels, average["entropy"])


def _pit(y: Tensor, draws: Tensor, cdf: Tensor | None, classes: Classes | None) -> Float[Tensor, "B N V"]:
    """Uniform between the mixture's cdf below the target and at it, or what the ranks say of both."""
    if classes is not None:
        label = classes.labels.unsqueeze(-1)
        jump = classes.probabilities.gather(-1, label).squeeze(-1)
        low = classes.probabilities.cumsum(-1).gather(-1, label).squeeze(-1) - jump
    elif cdf is not None:
        low, jump = cdf, torch.zeros_like(cdf)
    else:
        low, jump = (count / (len(draws) + 1) for count in ((draws < y).sum(0), (draws == y).sum(0) + 1))
    return (low + jump * torch.rand_like(low)).clamp(0, 1)


def predictive_scores(predictive: Predictive) -> dict[str, scores.Score]:
    """Scores of the real data, of all together and of each task; several coordinates of a target are averaged.

    Of any target ``nll`` (nats, of the whole target), ``coverage_P`` of the central ``P`` % intervals and ``rmsce``,
    from the PIT values. Of numbers ``crps``, ``interval_score_P`` (between order statistics of the draws:
    it takes 39 draws for the widest), ``aleatoric_sd`` and ``epistemic_sd``, all in units of the target, and
    ``spread_skill``. Of classes ``accuracy``,
    ``brier``, ``entropy``, ``expected_entropy`` and ``mutual_information`` (nats), ``ece`` and ``mce`` in bins of equal
    width, and the same with ``_equal_mass``; two classes are one event, that of class 1.

    ``rmsce``, ``spread_skill``, ``ece`` and ``mce`` are no averages over data: their value for one task is that of the
    task's few data, and the calibration errors are larger there by noise alone. For an interval, resample tasks.
    """
    mask = _array(predictive.mask)
    task, batch = mask.nonzero()[0], len(mask)
    pit = _array(predictive.pit)[mask]
    means = {"nll": -_array(predictive.log_density)[mask]}
    means |= {f"coverage_{100 * level:.0f}": scores.covered(pit, level).mean(1) for level in LEVELS}
    more_means, statistics = (_number_scores if predictive.classes is None else _class_scores)(predictive, mask)
    return {name: scores.averaged(values, task, batch) for name, values in (means | more_means).items()} | {
        "rmsce": scores.pooled(scores.rmsce, task, batch, pit),
        **{name: scores.pooled(statistic, task, batch, *data) for name, (statistic, *data) in statistics.items()},
    }


def _number_scores(predictive: Predictive, mask: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    """Means over the real data and statistics with their data, by name."""
    y, draws = _array(predictive.y)[mask], np.ascontiguousarray(np.moveaxis(_array(predictive.draws), 0, -1)[mask])
    means = {
        "crps": scores.crps_ensemble(draws, y).mean(1),
        "aleatoric_sd": np.sqrt(_array(predictive.aleatoric)[mask]).mean(1),
        "epistemic_sd": np.sqrt(_array(predictive.epistemic)[mask]).mean(1),
    }
    for level in LEVELS:
        # Between these order statistics a further draw lies with exactly that probability.
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=-1, method="weibull")
        means[f"interval_score_{100 * level:.0f}"] = scores.interval_score(low, high, y, level).mean(1)
    return means, {"spread_skill": (scores.spread_skill, draws, y)}


def _class_scores(predictive: Predictive, mask: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    """As for numbers."""
    classes: Any = predictive.classes
    p, labels = _array(classes.probabilities)[mask], _array(classes.labels)[mask]
    nats = ("entropy", "expected_entropy", "mutual_information")
    means = {name: _array(getattr(classes, name))[mask].mean(1) for name in nats}
    means["accuracy"] = (p.argmax(-1) == labels).mean(1)
    if p.shape[-1] == 2:
        p = p[..., 1]
    means["brier"] = scores.brier(p.reshape(-1, *p.shape[2:]), labels.reshape(-1)).reshape(labels.shape).mean(1)

    def calibration(error: Callable[[scores.Reliability], float], by: Any) -> tuple:
        return (lambda p, y: error(scores.reliability(p.reshape(-1, *p.shape[2:]), y.reshape(-1), by=by))), p, labels

    errors = {"ece": scores.ece, "mce": scores.mce}
    equal = {"": "width", "_equal_mass": "mass"}
    return means, {
        f"{name}{end}": calibration(error, by) for name, error in errors.items() for end, by in equal.items()
    }


def class_reliability(predictive: Predictive) -> scores.Reliability:
    """Claimed against observed frequencies of all class-valued variables together, in bins of equal width.

    Two classes are one event, that of class 1. Raises ValueError where the targets are numbers.
    """
    if predictive.classes is None:
        raise ValueError("class_reliability: expected class-valued targets, got numbers; look at the PIT instead")
    mask = _array(predictive.mask)
    p, labels = _array(predictive.classes.probabilities)[mask], _array(predictive.classes.labels)[mask]
    p = p[..., 1] if p.shape[-1] == 2 else p
    return scores.reliability(p.reshape(-1, *p.shape[2:]), labels.reshape(-1))


def epistemic_score(predictive: Predictive) -> Float[Tensor, "B N"]:
    """Variance of the components' means or, of classes, mutual information, summed over coordinates."""
    classes = predictive.classes
    return (predictive.epistemic if classes is None else classes.mutual_information).sum(-1)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
