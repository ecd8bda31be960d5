"""Every inference procedure against every family with a truth it applies to: calibrated, and how far from exact?

    OMP_NUM_THREADS=1 python -m benchmarks.inference_table [name ...]

A row per pair: the smallest p-value of the joint log-likelihood's ranks and of any coordinate's over context sizes, the
largest error of expected coverage at 50, 80 and 95 %, KL(exact || belief) in nats, contraction after 10 data, seconds
per task for all data, seconds for the whole check, and the verdict on calibration at the family-wise rate of 1e-3. Of
chains, after 10 data, the sliced Wasserstein distance in posterior standard deviations stands for the KL; 199 exact
draws are about 0.17 from 199 others. Encoders are trained here first; particles have no density
either. Names choose rows; without any, all but those of
NUTS, which take minutes each (``nuts`` chooses them).
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bayesmeta.diagnostics import check
from bayesmeta.inference.descent import Adam
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.grid import grid
from bayesmeta.inference.kalman import KalmanFilter
from bayesmeta.inference.laplace import Laplace
from bayesmeta.inference.mcmc import NUTS, ReferenceRejected
from bayesmeta.inference.svgd import SVGD
from bayesmeta.inference.variational import VariationalDescent
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.tasks.unknown_noise import UnknownNoise
from benchmarks.product_vs_exact import encoder_of, train

SIZES = (1, 5, 10, 50)
FAMILIES: dict[str, Any] = {
    "normal_normal": NormalNormal(),
    "linear_gaussian": LinearGaussian(dim=2, noise=1.0),
    "unknown_noise": UnknownNoise(),
    "bernoulli_bandit": BernoulliBandit(),
    "tabular_transitions": TabularTransitions(),
    "finite_hypotheses": FiniteHypotheses(),
    "sinusoid": Sinusoid(),
}
PRODUCTS = {
    "product, published": {"prior_factor": False},
    "product, prior factor": {},
    "product, prior factor, full covariance": {"covariance": "full", "rank": 2},
}


def trained(family: Any, options: dict[str, Any]) -> Any:
    return train(family, encoder_of(family, 0, **options), steps=2000)


def nuts(family: Any) -> NUTS:
    return NUTS(family.model, x_dim=family.spec.x_dim, y_dim=family.spec.y_dim, draws=700, warmup=300)


def coarse(family: Sinusoid) -> Any:
    """A grid of 60 cells a side, against that of 200."""
    return grid(family.model, family.model.low, family.model.high, (60, 60), x_dim=1, y_dim=1)


def descents(family: LinearGaussian) -> dict[str, Any]:
    """The procedures that descend on any model with a prior and a likelihood, run until they stand still."""
    sizes: dict[str, Any] = {"x_dim": family.spec.x_dim, "y_dim": family.spec.y_dim}
    mode = GradientDescent(family.model, steps=300, optimizer=Adam(0.05), objective="joint", **sizes)
    fit: dict[str, Any] = {"steps": 1000, "draws": "sigma", "optimizer": Adam(0.01), **sizes}
    return {
        "laplace": Laplace(mode),
        "mean field": VariationalDescent(family.model, **fit),
        "full Gaussian": VariationalDescent(family.model, covariance="full", **fit),
        "50 particles": SVGD(family.model, particles=50, steps=300, optimizer=Adam(0.05), **sizes),
    }


def still(family: LinearGaussian) -> KalmanFilter:
    """The filter for weights that do not drift."""
    dim = family.spec.param_dim
    return KalmanFilter(family.model, transition=torch.eye(dim), drift_cov=torch.zeros(dim, dim))


def rows() -> dict[str, tuple[str, Callable[[], Any], dict[str, Any]]]:
    """Label to family, how to make the procedure, and options of the check."""
    exact = {f"{name}: exact": (name, lambda f=family: f.exact, {}) for name, family in FAMILIES.items()}
    del exact["sinusoid: exact"]
    learned = {
        f"{name}: {label}": (name, lambda f=FAMILIES[name], o=options: trained(f, o), {})
        for name in ("normal_normal", "linear_gaussian")
        for label, options in PRODUCTS.items()
        if not (name == "normal_normal" and "full" in label)
    }
    chains = {
        f"{name}: nuts": (name, lambda f=FAMILIES[name]: nuts(f), {"tasks": 50, "sizes": (10,), "queries": 0})
        for name in ("normal_normal", "linear_gaussian", "unknown_noise", "bernoulli_bandit", "sinusoid")
    }
    linear = FAMILIES["linear_gaussian"]
    descended = {
        f"linear_gaussian: {label}": ("linear_gaussian", lambda p=procedure: p, {})
        for label, procedure in descents(linear).items()
    }
    filtered = {"linear_gaussian: kalman": ("linear_gaussian", lambda: still(linear), {})}
    gridded = {"sinusoid: grid 60 x 60": ("sinusoid", lambda: coarse(FAMILIES["sinusoid"]), {"tasks": 100})}
    return {**exact, **filtered, **learned, **descended, **gridded, **chains}


def row(label: str, name: str, make: Callable[[], Any], options: dict[str, Any]) -> str:
    procedure, began = make(), time.perf_counter()
    try:
        found = check(procedure, FAMILIES[name], **{"sizes": SIZES, **options}, progress=False)
    except ReferenceRejected as refused:
        return f"| {label} | refused: {'; '.join(refused.chains.faults())} |"
    seconds = time.perf_counter() - began
    group = found.tree["calibration"].to_dataset().drop_sel(context_step=0)
    p = group["p_value"]
    coordinates = [q for q in group["quantity"].to_numpy() if q.startswith("z")]
    covered = "-"
    if "coverage" in group:
        covered = f"{100 * np.abs(group['coverage'] - group['level']).max().item():.0f} %"
    far = (
        found.tree["distance"]
        .to_dataset()
        .mean(("task", "latent_dim"))
        .sel(context_step=[*options.get("sizes", SIZES)])
    )
    distance = each(far["kl_reference"].to_numpy(), ".2g")
    if "nuts" in label or "particles" in label:  # draws have no density
        wasserstein, ratio = far["sliced_wasserstein"].to_numpy(), far["sd_ratio"].to_numpy()
        distance = f"W {each(wasserstein, '.2g')}, sd ratio {each(ratio, '.3f')}"
    contraction = found.tree["fit_stats"]["contraction"].sel(context_step=10).mean().item()
    verdict = next(v.outcome for v in found.verdicts if v.question == "Is the belief calibrated?")
    cells = [
        f"{p.sel(quantity='log_likelihood').min().item():.2g}",
        f"{p.sel(quantity=coordinates).min().item():.2g}",
        *(covered, distance, f"{contraction:.3f}", f"{1e6 * found.tree.attrs['seconds_per_task']:.0f}"),
        *(f"{seconds:.0f}", verdict),
    ]
    return f"| {label} | {' | '.join(cells)} |"


def each(values: np.ndarray, form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in values)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    head = ("", "p log-likelihood", "p worst coordinate", "coverage error", "KL at n = 1 / 5 / 10 / 50")
    head += ("contraction", "us per task", "check, s", "calibrated")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for label, arguments in rows().items():
        if any(name in label for name in names) or (not names and "nuts" not in label):
            print(row(label, *arguments), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
