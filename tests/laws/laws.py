"""What every inference procedure obeys, or says that it does not. A law asserts; its arguments are drawn at random."""

from collections.abc import Callable

import torch
from torch import Tensor

from bayesmeta.types import Belief, Context, Inference, SupervisedFamily, concat

BATCH = 3


class Setting:
    """A procedure and two pieces of data of the same tasks, in float64."""

    def __init__(self, family: SupervisedFamily, inference: Inference, seed: int, sizes: tuple[int, int]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.inference = inference
        params = family.sample(BATCH, "train", self.generator)
        self.first, self.second = (_double(family.context(params, n, self.generator)) for n in sizes)
        self.both = concat([self.first, self.second])
        self.prior = inference.init(BATCH)
        self.none = self.both.rows(0, 0)

    def posterior(self, data: Context) -> Belief:
        return self.inference.update(self.prior, data)


def filtering(s: Setting) -> None:
    """Data in two pieces give the belief that they give together."""
    _assert_equal(s.inference.update(s.posterior(s.first), s.second), s.posterior(s.both))


def permutation(s: Setting) -> None:
    """The order of the data does not matter."""
    order = torch.randperm(s.both.size, generator=s.generator)
    _assert_equal(s.posterior(Context(s.both.x[:, order], s.both.y[:, order], s.both.mask)), s.posterior(s.both))


def mask(s: Setting) -> None:
    """A row that is masked out changes nothing, whatever it holds and wherever it stands."""
    rows = torch.rand(s.both.mask.shape, generator=s.generator) < 0.5
    hidden = Context(s.both.x.clone(), s.both.y.clone(), rows)
    hidden.x[~rows], hidden.y[~rows] = torch.nan, torch.inf
    for b in range(BATCH):
        kept = Context.of(s.both.x[b : b + 1, rows[b]], s.both.y[b : b + 1, rows[b]])
        alone = s.inference.update(s.inference.init(1), kept)
        for part, whole in zip(_moments(alone), _moments(s.posterior(hidden)), strict=True):
            torch.testing.assert_close(part[0], whole[b], rtol=1e-8, atol=1e-9)


def prior(s: Setting) -> None:
    """No data, or none but padding, leave the belief as it is."""
    nothing = Context(s.first.x, s.first.y, torch.zeros_like(s.first.mask))
    for belief in (s.prior, s.posterior(s.second)):
        for data in (s.none, nothing):
            _assert_equal(s.inference.update(belief, data), belief)


def contraction(s: Setting) -> None:
    """The same data seen twice are twice the evidence: the belief of every task moves."""
    once, twice = s.posterior(s.first), s.posterior(concat([s.first, s.first]))
    change = sum((a - b).abs().sum(-1) for a, b in zip(_moments(once), _moments(twice), strict=True))
    assert (change > 1e-4).all()


def bayes(s: Setting) -> None:
    """Data move the log odds of two latents by the same amount, whatever was believed before: the prior counts."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (), generator=s.generator)))
        z = s.prior.posterior.sample((2,))

    def odds(belief: Belief) -> Tensor:
        log_prob = belief.posterior.log_prob(z)
        return log_prob[0] - log_prob[1]

    after_prior = odds(s.posterior(s.second)) - odds(s.prior)
    after_data = odds(s.posterior(s.both)) - odds(s.posterior(s.first))
    torch.testing.assert_close(after_prior, after_data, rtol=1e-6, atol=1e-6)


def purity(s: Setting) -> None:
    """An update changes neither the belief it starts from nor the procedure."""
    before = [m.clone() for m in _moments(s.prior)]
    first = _moments(s.posterior(s.both))
    s.posterior(s.first)
    for old, new in zip([*before, *first], [*_moments(s.prior), *_moments(s.posterior(s.both))], strict=True):
        assert torch.equal(old, new)


LAWS: dict[str, Callable[[Setting], None]] = {
    law.__name__: law for law in (filtering, permutation, mask, prior, contraction, bayes, purity)
}


def _moments(belief: Belief) -> tuple[Tensor, Tensor]:
    return belief.posterior.mean, belief.posterior.variance


def _assert_equal(one: Belief, other: Belief) -> None:
    for a, b in zip(_moments(one), _moments(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def _double(data: Context) -> Context:
    return Context(data.x.double(), data.y.double(), data.mask)
