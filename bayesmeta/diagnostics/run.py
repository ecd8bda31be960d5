"""``bayesmeta diagnose``: from a run's folder to its results file and its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xarray as xr

from bayesmeta.collect import Rollout
from bayesmeta.diagnostics import results
from bayesmeta.diagnostics.calibration import calibration
from bayesmeta.diagnostics.decoding import FOLDS, decode, decoded_ranks, exact_curve
from bayesmeta.diagnostics.export import posterior_after, results_from
from bayesmeta.diagnostics.information import mixture_information
from bayesmeta.diagnostics.learners import learner_results
from bayesmeta.diagnostics.report import write_report
from bayesmeta.diagnostics.results import array, attribute
from bayesmeta.diagnostics.truth import exact_posterior, reference_returns
from bayesmeta.diagnostics.verdict import passed, table, verdicts
from bayesmeta.diagnostics.worlds import world_results
from bayesmeta.episodic import Learner
from bayesmeta.evaluate import evaluate
from bayesmeta.folder import session_versions
from bayesmeta.runs import load_run
from bayesmeta.tasks.world import World
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Agent, Algorithm, Context, ControlFamily, SupervisedFamily, TaskFamily, to


def diagnose(
    run_dir: Path | str,
    *,
    checkpoint: Literal["best", "last"] = "best",
    tasks: int = 100,
    episodes: int | None = None,
    draws: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust: bool = False,
) -> bool:
    """Adapt a run's agent to ``tasks`` fresh test tasks and write what its beliefs did; whether every gate passed.

    Writes ``diagnostics/results.nc`` (:mod:`bayesmeta.diagnostics.results`) and ``diagnostics/report.html`` into the
    run's folder, each whole or not at all, and prints the verdicts and, where adaptation is gradient descent, the prior
    that it stands for. ``episodes`` per task, default as in training.
    """
    run = load_run(run_dir, checkpoint, device=device, trust=trust)
    versions = session_versions()
    tree = results_of(
        run.algorithm,
        run.family,
        tasks=tasks,
        episodes=episodes or run.config.get("eval", {}).get("episodes", 3),
        draws=draws,
        seed=seed,
        device=device,
        attrs={
            "run": str(run.folder.path),
            "checkpoint": checkpoint,
            "iteration": run.iteration,
            "config": run.config,
            "versions": versions,
            "git_sha": versions["git"],
            "training_seed": run.config["seed"],
        },
    )
    folder = run.folder.path / "diagnostics"
    folder.mkdir(exist_ok=True)
    file = results.save(tree, folder / "results.nc")
    report = write_report(tree, folder / "report.html", family=run.family, run=run.folder)
    found = verdicts(tree)
    print(f"{table(found)}\nresults: {file}\nreport:  {report}")
    if implied := attribute(tree, "implied_prior"):
        print(f"\n{implied}")
    return passed(found)


def results_of(
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    tasks: int = 100,
    episodes: int = 3,
    shots: int = 20,
    draws: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """The results of an algorithm's beliefs on fresh test tasks of a family.

    Control families are adapted to for ``episodes`` episodes, supervised ones shown ``shots`` data. The parameters
    decoded from the belief and, where the family knows it, the exact posterior of the same data are in it. What a
    supervised meta-learner believes of its latent is told by the function's values
    (:mod:`bayesmeta.diagnostics.learners`), and what an agent believes in a world of finitely many problems by their
    probabilities (:mod:`bayesmeta.diagnostics.worlds`). Raises ValueError for fewer than 10 tasks.
    """
    if tasks < 2 * FOLDS:
        raise ValueError(f"tasks = {tasks}: expected at least {2 * FOLDS}, for parameters decoded on held-out tasks")
    attrs = {"algorithm": type(algorithm).__name__, "split": "test", **(attrs or {}), "seed": seed}
    if isinstance(algorithm, Learner) and isinstance(family, SupervisedFamily):
        return learner_results(
            algorithm, family, tasks=tasks, shots=shots, draws=draws, seed=seed, device=device, attrs=attrs
        )
    if isinstance(family, World):
        return world_results(
            cast(Agent, algorithm),
            family,
            tasks=tasks,
            episodes=episodes,
            draws=draws,
            seed=seed,
            device=device,
            attrs=attrs,
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, "diagnostics tasks"))
    params = family.sample(tasks, "test", generator).to(device)
    references: dict[str, torch.Tensor] = {}
    seen: Rollout | Context
    if isinstance(family, ControlFamily):
        seen = evaluate(
            cast(Agent, algorithm), family, params, episodes=episodes, seed=derived_seed(seed, "diagnostics episodes")
        )
        references = reference_returns(
            family, params, episodes=episodes, seed=derived_seed(seed, "diagnostics references")
        )
        context = seen.transitions.context(next_obs=family.spec.dynamics_vary)
    elif isinstance(family, SupervisedFamily):
        seen = context = family.context(params, shots, generator)
    else:
        raise TypeError(f"results_of: expected a family with `env` or `context`, got {type(family).__name__}")
    tree = results_from(
        seen,
        params,
        algorithm.inference,
        family.spec,
        draws=draws,
        seed=derived_seed(seed, "diagnostics draws"),
        references=references,
        attrs=attrs,
    )
    tree["decoded"] = xr.DataTree(decode(tree))
    if len(params.unique(dim=0)) >= 2 * FOLDS:  # ranks among a few different tasks are not uniform
        ranked = decoded_ranks(tree, derived_seed(seed, "diagnostics ranks"))
        if ranked is not None:
            tree["prior_sbc"], tree["calibration"] = xr.DataTree(ranked), xr.DataTree(calibration(ranked))
    tree["fit_stats"] = tree["fit_stats"].to_dataset().assign(information=_information(algorithm, context, tree, seed))
    exact = exact_posterior(family)
    if exact is not None:
        tree["exact"] = xr.DataTree(exact_curve(exact, to(context, "cpu"), tree))
    return tree


@torch.no_grad()
def _information(algorithm: Algorithm, context: Context, tree: xr.DataTree, seed: int) -> tuple[tuple[str, str], Any]:
    """How many nats the belief tells of which task it is about, at every context size."""
    found = []
    with seeded(derived_seed(seed, "diagnostics information")):
        for step in array(tree, "posterior", "context_step").tolist():
            found.append(mixture_information(posterior_after(algorithm.inference, context.rows(0, step))))
    return ("context_step", "task"), torch.stack(found).cpu().numpy()
