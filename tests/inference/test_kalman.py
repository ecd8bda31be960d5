"""The filter of drifting weights against the joint normal of the whole path, Riccati's equation, and the laws."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.kalman import GaussianRoot, KalmanFilter
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.types import Context
from tests.laws.laws import LAWS, Setting

BATCH, DIM, SHOTS, NOISE = 3, 3, 7, 0.7


def motion(dim: int) -> tuple[Tensor, Tensor]:
    """A rotation that shrinks, and drift in all directions but one."""
    generator = torch.Generator().manual_seed(dim)
    turn, drift = (torch.randn(dim, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    drift[:, 0] = 0.0
    return 0.9 * torch.linalg.qr(turn).Q, 0.3 * drift @ drift.mT


def drifting(dim: int = DIM) -> KalmanFilter:
    """A prior with correlations and a mean, moved by :func:`motion`."""
    generator = torch.Generator().manual_seed(dim + 100)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return KalmanFilter(LinearGaussianModel(mean, root @ root.mT + 0.5 * torch.eye(dim), NOISE).double(), *motion(dim))


def some_data(dim: int = DIM, shots: int = SHOTS) -> Context:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, shots, dim, generator=generator, dtype=torch.float64)
    y = torch.randn(BATCH, shots, 1, generator=generator, dtype=torch.float64)
    return Context.of(x, y)


def path(kalman: KalmanFilter, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and covariance of ``(z_1, ..., z_{N + 1})`` as one vector, and of ``y_1 .. y_N`` the loading and the mean.

    No filtering: ``cov(z_s, z_t) = F^(t - s) cov(z_s)`` entry by entry.
    """
    shots, dim = x.shape
    step, drift = motion(dim)
    means, variances = [kalman.model.mean], [kalman.model.covariance]
    for _ in range(shots):
        means.append(step @ means[-1])
        variances.append(step @ variances[-1] @ step.mT + drift)
    blocks = torch.zeros(shots + 1, dim, shots + 1, dim, dtype=torch.float64)
    for s in range(shots + 1):
        for t in range(s, shots + 1):
            blocks[t, :, s] = torch.linalg.matrix_power(step, t - s) @ variances[s]
            blocks[s, :, t] = blocks[t, :, s].mT.clone()
    size = (shots + 1) * dim
    loading = torch.zeros(shots, size, dtype=torch.float64)
    for n in range(shots):
        loading[n, n * dim : (n + 1) * dim] = x[n]
    mean = torch.cat(means)
    return mean, blocks.reshape(size, size), loading, loading @ mean


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("shots", [1, 3, 12])
def test_belief_is_the_conditional_of_the_joint_normal_of_the_path(dim: int, shots: int) -> None:
    """All weights of all times are conditioned on all data at once; the last of them are the belief."""
    kalman, data = drifting(dim), some_data(dim, shots)
    posterior = kalman.update(kalman.init(BATCH), data).posterior
    for b in range(BATCH):
        mean, covariance, loading, expected = path(kalman, data.x[b])
        spread = loading @ covariance @ loading.mT + NOISE**2 * torch.eye(shots, dtype=torch.float64)
        gain = covariance @ loading.mT @ spread.inverse()
        mean = mean + gain @ (data.y[b, :, 0] - expected)
        covariance = covariance - gain @ loading @ covariance
        torch.testing.assert_close(posterior.mean[b], mean[-dim:], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(posterior.covariance_matrix[b], covariance[-dim:, -dim:], rtol=1e-8, atol=1e-8)


def test_predictives_multiply_to_the_evidence_of_the_path() -> None:
    """The chain rule: ``log p(y) = sum_n log p(y_n | y_<n)``, with one filter step between the factors."""
    kalman, data = drifting(), some_data()
    belief, total = kalman.init(BATCH), torch.zeros(BATCH, dtype=torch.float64)
    for n in range(SHOTS):
        datum = data.rows(n, n + 1)
        total = total + kalman.predictive(belief, datum.x).log_prob(datum.y).squeeze(1)
        belief = kalman.update(belief, datum)
    for b in range(BATCH):
        _, covariance, loading, expected = path(kalman, data.x[b])
        spread = loading @ covariance @ loading.mT + NOISE**2 * torch.eye(SHOTS, dtype=torch.float64)
        evidence = MultivariateNormal(expected, spread).log_prob(data.y[b, :, 0])
        torch.testing.assert_close(total[b], evidence, rtol=1e-10, atol=1e-10)


def test_without_drift_it_is_bayesian_linear_regression() -> None:
    model, data = drifting().model, some_data()
    eye = torch.eye(DIM, dtype=torch.float64)
    kalman, exact = KalmanFilter(model, eye, 0.0 * eye), ConjugateGaussian(model)
    still, regression = (i.update(i.init(BATCH), data).posterior for i in (kalman, exact))
    torch.testing.assert_close(still.mean, regression.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(still.covariance_matrix, regression.covariance_matrix, rtol=1e-10, atol=1e-10)
    law = kalman.predictive(kalman.init(BATCH), data.x)
    by_regression = exact.predictive(exact.init(BATCH), data.x)
    torch.testing.assert_close(law.mean, by_regression.mean)
    torch.testing.assert_close(law.variance, by_regression.variance)


@pytest.mark.parametrize("f, q, r", [(1.0, 0.1, 0.5), (0.8, 0.3, 1.0), (1.1, 0.01, 2.0)])
def test_steady_variance_is_the_root_of_the_riccati_equation(f: float, q: float, r: float) -> None:
    """``p = f^2 p r^2 / (p + r^2) + q``, a quadratic in ``p``; an unstable ``f`` too."""
    model = LinearGaussianModel(torch.zeros(1), torch.eye(1), noise=r).double()
    kalman = KalmanFilter(model, torch.tensor([[f]]).double(), torch.tensor([[q]]).double())
    ones = torch.ones(1, 400, 1, dtype=torch.float64)
    found = float(kalman.update(kalman.init(1), Context.of(ones, ones)).posterior.variance)
    b = r**2 * (1 - f**2) - q
    assert math.isclose(found, (-b + math.sqrt(b**2 + 4 * q * r**2)) / 2, rel_tol=1e-6)  # q is a float32 number


def test_scan_is_an_update_on_every_prefix() -> None:
    """Row ``n B + b`` is task ``b`` after ``n`` rows, padding and an earlier belief included."""
    kalman, data = drifting(), some_data()
    mask = torch.rand(BATCH, SHOTS, generator=torch.Generator().manual_seed(0)) < 0.6
    data = Context(data.x, data.y, mask)
    start, rest = kalman.update(kalman.init(BATCH), data.rows(0, 2)), data.rows(2, SHOTS)
    scanned = kalman.scan(start, rest)
    assert scanned.mean.shape == ((rest.size + 1) * BATCH, DIM)
    for n in range(rest.size + 1):
        after, rows = kalman.update(start, rest.rows(0, n)), slice(n * BATCH, (n + 1) * BATCH)
        assert torch.equal(scanned.mean[rows], after.mean) and torch.equal(scanned.scale_tril[rows], after.scale_tril)


@pytest.mark.parametrize("law", ["filtering", "mask", "prior", "contraction", "purity"])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 2)])
def test_laws(law: str, sizes: tuple[int, int]) -> None:
    """All but those of data without an order: ``permutation``, and ``bayes``, whose latent does not move."""
    for seed in range(5):
        LAWS[law](Setting(LinearGaussian(dim=DIM), drifting(), seed, sizes))


def test_the_order_of_the_data_matters() -> None:
    with pytest.raises(AssertionError):
        LAWS["permutation"](Setting(LinearGaussian(dim=DIM), drifting(), seed=0, sizes=(4, 4)))


def test_no_time_passes_over_padding() -> None:
    """Before, between and after the data: neither variance nor mean moves."""
    kalman, data = drifting(), some_data()
    holes = torch.tensor([False, True, False, False, True, True, False])
    padded = Context(data.x.masked_fill(~holes[:, None], torch.nan), data.y, holes.expand(BATCH, -1))
    dense = Context.of(data.x[:, holes], data.y[:, holes])
    sparse, whole = kalman.update(kalman.init(BATCH), padded), kalman.update(kalman.init(BATCH), dense)
    assert torch.equal(sparse.mean, whole.mean) and torch.equal(sparse.scale_tril, whole.scale_tril)


def test_root_stays_a_root_in_single_precision() -> None:
    """A vague prior and nearly exact data, many of them: the covariance by differences would lose its sign."""
    dim, shots = 3, 300
    model = LinearGaussianModel(torch.zeros(dim), 1e4 * torch.eye(dim), noise=1e-2)
    kalman = KalmanFilter(model, torch.eye(dim), 1e-8 * torch.eye(dim))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, shots, dim, generator=generator)
    y = x @ torch.tensor([[1.0], [2.0], [-1.0]]) + 1e-2 * torch.randn(1, shots, 1, generator=generator)
    single = kalman.update(kalman.init(1), Context.of(x, y)).posterior
    kalman = kalman.double()
    double = kalman.update(kalman.init(1), Context.of(x.double(), y.double())).posterior
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-2, atol=0)
    assert ((single.mean - double.mean).abs() < 0.1 * double.stddev).all()


def test_gradients_reach_the_transition_and_the_data() -> None:
    """What learning the transition needs: finite differences of the predictive density, masked rows included."""
    kalman, data = drifting(2), some_data(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])

    def log_prob(transition: Tensor, y: Tensor) -> Tensor:
        moved = KalmanFilter(kalman.model, transition, motion(2)[1])
        belief = moved.update(moved.init(BATCH), Context(data.x, y, mask))
        return moved.predictive(belief, data.x[:, :1]).log_prob(y[:, :1])

    inputs = (kalman.transition.clone().requires_grad_(), data.y.clone().requires_grad_())
    assert torch.autograd.gradcheck(log_prob, inputs)


def test_belief_by_hand() -> None:
    """Variance 1, noise 1, ``F = 2``, ``Q = 3``: one datum ``y = 4`` leaves N(2, 1/2), and time makes it N(4, 5)."""
    model = LinearGaussianModel(torch.zeros(1), torch.eye(1), noise=1.0)
    kalman = KalmanFilter(model, torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    belief = kalman.update(kalman.init(1), Context.of(torch.ones(1, 1, 1), torch.full((1, 1, 1), 4.0)))
    assert isinstance(belief, GaussianRoot)
    torch.testing.assert_close(belief.posterior.mean, torch.tensor([[4.0]]))
    torch.testing.assert_close(belief.posterior.variance, torch.tensor([[5.0]]))


def test_what_is_no_drift_is_refused() -> None:
    model, eye = LinearGaussianModel(torch.zeros(2), torch.eye(2), noise=1.0), torch.eye(2)
    with pytest.raises(ValueError, match=r"of shape \(2, 2\), one row for each weight of the model, got \(3, 3\)"):
        KalmanFilter(model, torch.eye(3), torch.eye(3))
    for bad in (-eye, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])):
        with pytest.raises(ValueError, match="expected a symmetric drift_cov without negative variance"):
            KalmanFilter(model, eye, bad)
    lost = torch.diag(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="give the lost directions drift"):
        KalmanFilter(model, lost, lost)
    KalmanFilter(model, lost, eye - lost)
    with pytest.raises(ValueError, match=r"KalmanFilter: expected data x \[1, N, 2\] and y \[1, N, 1\]"):
        kalman = KalmanFilter(model, eye, eye)
        kalman.update(kalman.init(1), Context.of(torch.ones(1, 2, 3), torch.ones(1, 2, 1)))
