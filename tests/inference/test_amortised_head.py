"""VERSA's amortised classifier: one class at a time, whatever the others are, and the model whose latent it is."""

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayesmeta.inference.amortised_head import AmortisedHead
from bayesmeta.inference.predictive import log_predictive
from bayesmeta.models.architectures import mlp
from bayesmeta.models.class_head import ClassHead
from bayesmeta.models.network_model import inductive
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, concat

BATCH, X, F, WAYS = 2, 4, 3, 3


def head(*, norm: bool = False, ways: int = WAYS) -> AmortisedHead:
    with torch_seeded(0):
        return AmortisedHead(ClassHead(mlp(X, F, (8,), norm=norm), F, ways), x_dim=X).double()


def data(labels: list[int], seed: int = 0) -> Context:
    x = torch.randn(BATCH, len(labels), X, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Context.of(x, torch.eye(WAYS, dtype=torch.float64)[labels].expand(BATCH, -1, -1))


def by_class(values: Tensor) -> Tensor:
    return values.unflatten(-1, (WAYS, F + 1))


def test_moments_by_hand() -> None:
    """Class 1 has two data: the four networks on the mean of their features, variances by the exponential."""
    ours, seen = head(), data([1, 0, 1, 2])
    belief = ours.update(ours.init(BATCH), seen)
    pooled = ours.model.features(seen.x[:, [0, 2]]).mean(1)
    mean = torch.cat([ours.weight_mean(pooled), ours.bias_mean(pooled)], -1)
    variance = torch.cat([ours.weight_log_variance(pooled), ours.bias_log_variance(pooled)], -1).exp()
    torch.testing.assert_close(by_class(belief.posterior.mean)[:, 1], mean)
    torch.testing.assert_close(by_class(belief.posterior.variance)[:, 1], variance)


def test_a_class_knows_only_its_own_data_and_renaming_classes_renames_the_belief() -> None:
    ours = head()
    one, other = (ours.update(ours.init(BATCH), seen) for seen in (data([0, 1, 2]), data([0, 1, 1])))
    torch.testing.assert_close(by_class(one.mean)[:, 0], by_class(other.mean)[:, 0])
    prior = ours.model.prior(BATCH)
    assert (by_class(other.mean)[:, 2] == 0).all() and (by_class(other.sd)[:, 2] == 1).all()  # no data of it
    assert (kl_divergence(ours.init(BATCH).posterior, prior) == 0).all()
    renamed = ours.update(ours.init(BATCH), data([2, 0, 1]))
    torch.testing.assert_close(by_class(renamed.mean)[:, [2, 0, 1]], by_class(one.mean))


def test_a_mean_of_features_is_blind_to_their_number() -> None:
    ours, seen = head(), data([0, 1, 2, 2])
    once, twice = (ours.update(ours.init(BATCH), some) for some in (seen, concat([seen, seen])))
    torch.testing.assert_close(twice.mean, once.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twice.sd, once.sd, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("draws", [(), (5,), (2, 3)])
def test_logits_are_those_of_each_drawn_classifier(draws: tuple[int, ...]) -> None:
    model, seen = head().model, data([0, 1, 2, 2])
    z = torch.randn(*draws, BATCH, WAYS * (F + 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = model.likelihood(z.unsqueeze(-2), seen)
    assert law.batch_shape == (*draws, BATCH, 4) and law.event_shape == (WAYS,)
    classifier = by_class(z)
    logits = torch.einsum("bnf,...bcf->...bnc", model.features(seen.x), classifier[..., :F])
    logits = logits + classifier[..., None, :, F]
    torch.testing.assert_close(law.probs, logits.softmax(-1))
    if not draws:
        program = pyro.poutine.condition(model, {"z": z.unsqueeze(1)})
        trace = pyro.poutine.trace(program).get_trace(seen)
        torch.testing.assert_close(trace.log_prob_sum(), model.log_joint(z, seen).sum())


def test_normalised_features_take_the_supports_statistics_unless_told_otherwise() -> None:
    """Then a query's prediction does not depend on the other queries; transduction does, and so does a bare model."""
    ours, seen, query = head(norm=True), data([0, 1, 2, 0, 1, 2]), data([0, 1, 2], seed=1)
    assert ours.model.mixes_rows and not head().model.mixes_rows
    posterior = ours.update(ours.init(BATCH), seen).posterior

    def first(count: int, support: Context | None) -> Tensor:
        with torch_seeded(0):
            return log_predictive(ours.model, posterior, query.rows(0, count), support=support, draws=4)[:, 0]

    torch.testing.assert_close(first(1, seen), first(3, seen))
    assert (first(2, None) - first(3, None)).abs().min() > 1e-6
    assert isinstance(inductive(head().model, seen), ClassHead)
    again = ours.update(ours.update(ours.init(BATCH), seen.rows(0, 2)), seen.rows(2, 6))
    torch.testing.assert_close(again.mean, posterior.mean)


def test_gradients_reach_features_and_all_four_networks() -> None:
    ours, seen, query = head(), data([0, 1, 2]), data([0, 1, 2], seed=1)
    posterior = ours.update(ours.init(BATCH), seen).posterior
    log_predictive(ours.model, posterior, query, draws=3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())


def test_what_cannot_be_is_refused() -> None:
    ours, seen = head(), data([0, 1])
    for y in (2 * seen.y, 0 * seen.y, 0.5 * seen.y):
        with pytest.raises(ValueError, match="expected y one-hot in the class of a datum"):
            ours.update(ours.init(BATCH), Context.of(seen.x, y))
    normed, padded = head(norm=True), Context(seen.x, seen.y, torch.tensor([[True, False]] * BATCH))
    with pytest.raises(ValueError, match=r"expected no padding, .* got 2 padded rows"):
        normed.update(normed.init(BATCH), padded)
    assert ours.update(ours.init(BATCH), padded).mean.isfinite().all()
    with pytest.raises(ValueError, match=r"AmortisedHead: expected data x \[2, N, 4\] and y \[2, N, 3\]"):
        ours.update(ours.init(BATCH), Context.of(seen.x, seen.y[..., :2]))
