"""Set encoders and decoders: what a mean cannot see, and that model, encoder and Pyro program are one."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from bayesmeta.inference.guides import elbo_loss, guide
from bayesmeta.inference.predictive import log_predictive
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.inference.set_encoder import Amortised, MeanEncoder
from bayesmeta.models.decoder import AttentiveDecoder, Decoder
from bayesmeta.models.network_model import inductive
from bayesmeta.models.outputs import ClassOutput, SpreadOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, concat

BATCH, X, Y, D = 3, 2, 1, 4


def seeded(make):
    with torch_seeded(0):
        return make().double()


def data(size: int, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(BATCH, size, w, generator=generator, dtype=torch.float64) for w in (X, Y))
    return Context.of(x, y)


def mean_encoder(**options: object) -> MeanEncoder:
    return seeded(lambda: MeanEncoder(X, Y, D, widths=(8, 8), **options))


def decoder() -> Decoder:
    return seeded(lambda: Decoder(X, D, SpreadOutput(Y), widths=(8, 8)))


def attentive() -> AttentiveDecoder:
    return seeded(lambda: AttentiveDecoder(X, Y, D, SpreadOutput(Y), widths=(8, 8), width=8, heads=2))


def belief_of(encoder, seen: Context):
    return encoder.update(encoder.init(BATCH), seen)


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_a_mean_is_blind_to_the_number_of_data_and_a_product_is_not(copies: int) -> None:
    """C and C with itself: the same belief from a mean, of a Gaussian and of a point; a product adds its factors up."""
    seen = data(5)
    many = concat([seen] * copies)
    for encoder in (mean_encoder(), mean_encoder(point=True)):
        once, again = belief_of(encoder, seen), belief_of(encoder, many)
        torch.testing.assert_close(again.mean, once.mean, rtol=1e-12, atol=1e-12)
        assert (once.sd is None) == (again.sd is None)
        if once.sd is not None:
            torch.testing.assert_close(again.sd, once.sd, rtol=1e-12, atol=1e-12)
    product = seeded(lambda: ProductOfGaussians(X, Y, D, widths=(8,)))
    once, again = belief_of(product, seen), belief_of(product, many)
    torch.testing.assert_close(again.precision - 1, copies * (once.precision - 1), rtol=1e-10, atol=1e-10)
    assert (again.posterior.variance < once.posterior.variance).all()


def test_no_data_is_the_models_prior_exactly() -> None:
    nothing = data(3)
    nothing.mask[:] = False
    for encoder in (mean_encoder(), seeded(lambda: ProductOfGaussians(X, Y, D, widths=(8,)))):
        for belief in (encoder.init(BATCH), belief_of(encoder, nothing), belief_of(encoder, nothing.rows(0, 0))):
            assert (kl_divergence(belief.posterior, decoder().prior(BATCH)) == 0).all()
    point = belief_of(mean_encoder(point=True), nothing)
    assert isinstance(point.posterior, dist.Delta) and (point.mean == 0).all()


def test_pooled_code_is_the_mean_of_embeddings_by_hand() -> None:
    """Row by row through the network; standard deviations in [least, 1]."""
    encoder, seen = mean_encoder(point=True), data(4)
    rows = torch.cat([seen.x, seen.y], -1)
    by_hand = torch.stack([encoder.net(rows[:, n]) for n in range(4)]).mean(0)
    torch.testing.assert_close(belief_of(encoder, seen).mean, by_hand)
    wide = belief_of(mean_encoder(), Context.of(1e6 * seen.x, 1e6 * seen.y)).sd
    assert (wide >= 0.1).all() and (wide <= 1).all() and wide.max() - wide.min() > 0.5
    assert (belief_of(mean_encoder(least=0.0), Context.of(1e6 * seen.x, 1e6 * seen.y)).sd < 0.05).any()


def test_gradients_reach_every_weight_and_padding_gives_none() -> None:
    encoder, seen = mean_encoder(), data(3)
    x = seen.x.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    belief = belief_of(encoder, Context(x, seen.y, mask))
    (belief.posterior.rsample().sum() + belief.sd.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert (x.grad[~mask] == 0).all() and (x.grad[mask] != 0).all()


@pytest.mark.parametrize("draws", [(), (5,), (2, 3)])
@pytest.mark.parametrize("output", [SpreadOutput(Y), ClassOutput(3)])
def test_decoder_is_the_network_on_input_and_latent_together(draws, output) -> None:
    """For every draw and datum alone, as one concatenated row of the same weights."""
    model = seeded(lambda: Decoder(X, D, output, widths=(8,)))
    seen, generator = data(4), torch.Generator().manual_seed(1)
    z = torch.randn(*draws, BATCH, 1, D, generator=generator, dtype=torch.float64)
    out = model.outputs(z, seen.x)
    assert out.shape == (*draws, BATCH, 4, output.width)
    rows = torch.cat([seen.x.expand(*draws, -1, -1, -1), z.expand(*draws, BATCH, 4, D)], -1)
    first = torch.cat([model.net.weights[0][0], model.net.latent_weight[0]], -1)
    hidden = (rows @ first.mT + model.net.biases[0][0]).relu()
    torch.testing.assert_close(out, hidden @ model.net.weights[1][0].mT + model.net.biases[1][0])
    assert model.likelihood(z, seen).batch_shape == (*draws, BATCH, 4)


def test_least_noise_is_what_the_decoder_can_say() -> None:
    model = seeded(lambda: Decoder(X, D, SpreadOutput(Y, least=0.1), widths=(8,)))
    far = Context.of(1e8 * data(50).x, 0 * data(50).y)
    law = model.likelihood(torch.zeros(BATCH, 1, D, dtype=torch.float64), far)
    assert math.isclose(float(law.stddev.detach().min()), 0.1)


@pytest.mark.parametrize("make", [decoder, attentive])
def test_program_of_a_decoder_is_its_density_and_the_encoder_its_guide(make) -> None:
    """The trace's log-probability; and Pyro's ELBO with the encoder as guide is a free energy computed by hand."""
    model, encoder = make(), mean_encoder()
    seen, query = data(4), data(6, seed=1)
    given = inductive(model, seen)
    z = given.prior(BATCH).sample()
    trace = pyro.poutine.trace(pyro.poutine.condition(given, {"z": z.unsqueeze(1)})).get_trace(query)
    torch.testing.assert_close(trace.log_prob_sum(), given.log_joint(z, query).sum())
    both = Amortised(model, encoder)
    posterior = belief_of(both, seen).posterior
    with torch_seeded(1):
        elbo = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=2)
        loss = elbo_loss(elbo, model, guide(both), seen)
    with torch_seeded(1):
        z = posterior.rsample((4,))
    by_hand = kl_divergence(posterior, model.prior(BATCH)) - model.log_likelihood(z, seen).mean(0)
    torch.testing.assert_close(loss, by_hand.sum())


def test_attention_is_given_to_the_model_and_forgets_order_and_padding() -> None:
    """Predictions depend on the support; without one they are those of the bare model; tasks do not meet."""
    model, seen, query = attentive(), data(5), data(3, seed=1)
    z = torch.zeros(BATCH, 1, D, dtype=torch.float64)

    def mean(support: Context) -> torch.Tensor:
        return inductive(model, support).likelihood(z, query).mean

    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(mean(Context(seen.x[:, order], seen.y[:, order], seen.mask)), mean(seen))
    padded = concat([seen, Context(torch.nan * seen.x, torch.nan * seen.y, torch.zeros_like(seen.mask))])
    torch.testing.assert_close(mean(padded), mean(seen))
    alone = model.likelihood(z, query).mean
    assert (mean(seen) - alone).abs().min() > 1e-6
    torch.testing.assert_close(mean(seen.rows(0, 0)), alone)
    torch.testing.assert_close(mean(Context(seen.x, seen.y, torch.zeros_like(seen.mask))), alone)
    changed = Context(seen.x.clone(), seen.y.clone(), seen.mask)
    changed.y[0] += 1
    moved = (mean(changed) - mean(seen)).abs().amax((1, 2))
    assert moved[0] > 1e-6 and (moved[1:] == 0).all()


def test_predictions_ask_for_the_support() -> None:
    """``log_predictive`` with the support attends to it; a decoder without attention does not care."""
    seen, query = data(5), data(3, seed=1)
    point = dist.Delta(torch.zeros(BATCH, D, dtype=torch.float64), event_dim=1)
    for make, cares in ((attentive, True), (decoder, False)):
        found = [log_predictive(make(), point, query, support=support) for support in (None, seen)]
        assert (not torch.equal(*found)) is cares


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= least < 1 and at least one width, got 1.0"):
        MeanEncoder(X, Y, D, least=1.0)
    with pytest.raises(ValueError, match="at least one width"):
        MeanEncoder(X, Y, D, widths=())
    with pytest.raises(ValueError, match=r"expected an encoder of the model's latent \(4,\), got one of \(5,\)"):
        Amortised(decoder(), MeanEncoder(X, Y, 5))
    with pytest.raises(ValueError, match="a multiple of heads, got 6 and 4"):
        AttentiveDecoder(X, Y, D, SpreadOutput(Y), width=6, heads=4)
    with pytest.raises(ValueError, match=r"MeanEncoder: expected data x \[3, N, 2\] and y \[3, N, 1\]"):
        belief_of(mean_encoder(), Context.of(data(2).x, data(2).x))
    assert isinstance(copy.deepcopy(Amortised(attentive(), mean_encoder())).float().init(2).mean, torch.Tensor)
