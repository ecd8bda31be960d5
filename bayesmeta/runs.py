"""From a configuration to objects, and from a run's folder back to the agent it trained."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from bayesmeta import checkpoint
from bayesmeta.config import ConfigError, flat, without_schema
from bayesmeta.evaluate import evaluate
from bayesmeta.folder import RunFolder, write_atomically
from bayesmeta.train import Evaluating, Saving, Summary, derived_seed, seeded, train
from bayesmeta.types import Agent, Algorithm, ControlFamily, SupervisedFamily, TaskFamily

_OWN = re.compile(
    r"bayesmeta\.((algorithms|tasks)\.[a-z_0-9]+|episodic|models\.architectures|rl\.q_learner)\.[A-Z][A-Za-z0-9]*"
)


@dataclass(frozen=True)
class Run:
    """A trained agent, read from its folder."""

    folder: RunFolder
    config: dict[str, Any]
    algorithm: Algorithm
    family: TaskFamily
    iteration: int


def build(config: dict[str, Any], device: torch.device | str = "cpu") -> tuple[Algorithm, TaskFamily]:
    """The algorithm and the task family that a configuration names, each a ``_target_`` with its arguments.

    Raises ConfigError with what a constructor says of values that do not go together.
    """
    try:
        family = instantiate(OmegaConf.create(without_schema(config["task"])))
        algorithm = instantiate(OmegaConf.create(without_schema(config["algorithm"])))
        return algorithm(spec=family.spec, device=device), family
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(str(error.__cause__)) from error
        raise


def chosen_device(name: str, threads: int | None = None) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here; sets torch's threads if a number is given."""
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def train_run(config: dict[str, Any], run_dir: Path) -> Summary:
    """``bayesmeta train``: build what the (checked, resolved) configuration names and train it in ``run_dir``."""
    device = chosen_device(config["device"], config["threads"])
    with seeded(config["seed"]):  # networks are drawn when they are built
        algorithm, family = build(config, device)
        print(f"run folder: {run_dir}", flush=True)
        return train(
            algorithm,
            family,
            iterations=config["iterations"],
            seed=config["seed"],
            run_dir=run_dir,
            resume=config["resume"],
            device=device,
            evaluating=Evaluating(**without_schema(config["eval"])),
            saving=Saving(**without_schema(config["checkpoint"])),
            progress=config["progress"],
            tensorboard=config["tensorboard"],
            config=without_schema(config),
        )


def load_run(
    run_dir: Path | str,
    which: Literal["best", "last"] = "best",
    *,
    device: torch.device | str = "cpu",
    trust: bool = False,
    task: dict[str, Any] | None = None,
) -> Run:
    """The agent of a run folder as it was at its best evaluation (``last`` if there was none) or at the end.

    ``task`` replaces the task family that it was trained on. Only classes of ``bayesmeta.algorithms`` and
    ``bayesmeta.tasks`` are built from a folder's config.yaml unless ``trust`` is set: a folder from elsewhere cannot
    make code run. Raises ConfigError or CheckpointError with what is wrong with the folder.
    """
    folder = RunFolder(run_dir)
    config = folder.read_config()
    if not trust:
        _refuse_foreign(folder, config)
    if task is not None:
        config = {**config, "task": task}
    path = checkpoint.best(folder.checkpoints) if which == "best" else None
    found = checkpoint.load(path) if path else checkpoint.load_latest(folder.checkpoints)
    if found is None:
        raise checkpoint.CheckpointError(f"{folder.path} holds no checkpoint: was the run stopped before its first?")
    with seeded(config["seed"]):
        algorithm, family = build(config, device)
        algorithm.setup(family, config["seed"])
        with checkpoint.fitting(found, algorithm):
            algorithm.load_state_dict(found.components["algorithm"])
    return Run(folder, config, algorithm, family, found.iteration)


def _refuse_foreign(folder: RunFolder, config: dict[str, Any]) -> None:
    for key, value in flat(config):
        if key.endswith("_target_") and not _OWN.fullmatch(str(value)):
            raise ConfigError(
                f"{folder.config}: {key} = {value} is not one of bayesmeta's algorithms or tasks; pass trust=true if "
                f"you know where this folder comes from"
            )


def evaluate_run(config: dict[str, Any]) -> str:
    """``bayesmeta evaluate``: adapt to tasks of a split, store every score, and give the table to print.

    The tasks are not those on which training chose its best checkpoint.
    """
    device = chosen_device(config["device"], config["threads"])
    task = without_schema(config["task"]) if config.get("task") else None
    run = load_run(config["run"], config["checkpoint"], device=device, trust=config["trust"], task=task)
    generator = torch.Generator().manual_seed(derived_seed(config["seed"], "fresh tasks"))
    params = run.family.sample(config["tasks"], config["split"], generator).to(device)
    seed = derived_seed(config["seed"], "fresh episodes")
    table = _returns if run.family.spec.is_control else _predictions
    scores, lines = table(run, config, params, seed)
    record = {
        "task": run.family.spec.name,
        "split": config["split"],
        "iteration": run.iteration,
        "seed": config["seed"],
        **scores,
        "params": params.cpu().tolist(),
    }
    name = f"{run.family.spec.name}-{config['split']}-iteration-{run.iteration:09d}-seed-{config['seed']}.json"
    run.folder.evaluation.mkdir(exist_ok=True)
    write_atomically(run.folder.evaluation / name, json.dumps(record) + "\n")
    return "\n".join(
        [
            f"{run.family.spec.name}: {len(params)} {config['split']} tasks, agent of iteration {run.iteration}",
            *lines,
            f"all scores: {run.folder.evaluation / name}",
        ]
    )


def _returns(run: Run, config: dict[str, Any], params: Tensor, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Every episode's return, of each task and as lines of a table."""
    episodes = config["episodes"] or run.config["eval"]["episodes"]
    agent, family = cast(Agent, run.algorithm), cast(ControlFamily, run.family)
    returns = evaluate(agent, family, params, episodes=episodes, seed=seed).returns.cpu()
    low, high = bootstrap_interval(returns)
    record = {"mean": returns.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}
    rows = zip(record["mean"], record["low"], record["high"], strict=True)
    lines = [
        f"{'episode':>7}  {'mean return':>12}  95 % interval over tasks",
        *(f"{k:>7}  {mean:>12.4g}  [{low:.4g}, {high:.4g}]" for k, (mean, low, high) in enumerate(rows, 1)),
    ]
    return record | {"returns": returns.tolist()}, lines


def _predictions(run: Run, config: dict[str, Any], params: Tensor, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Scores of the predictions after each number of data, of each task and as lines of a table."""
    from bayesmeta.diagnostics.held_out import prediction_scores  # training needs nothing of it

    shots = config["shots"] or run.config["eval"]["shots"]
    found = prediction_scores(
        run.algorithm, cast(SupervisedFamily, run.family), params, shots=shots, queries=config["queries"], seed=seed
    )
    width = max(map(len, found))
    lines = [f"{'after':>5}  {'':<{width}}  {'mean':>10}  95 % interval over tasks"]
    for k, count in enumerate(shots):
        for name, values in found.items():
            low, high = (bound.item() for bound in bootstrap_interval(values[:, k : k + 1]))
            lines.append(f"{count:>5}  {name:<{width}}  {values[:, k].mean():>10.4g}  [{low:.4g}, {high:.4g}]")
    return {"shots": list(shots), **{name: values.tolist() for name, values in found.items()}}, lines


def bootstrap_interval(
    returns: Float[Tensor, "B K"], level: float = 0.95, draws: int = 2000
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"]]:
    """Percentile bootstrap interval of each column's mean, resampling tasks; the same for the same returns."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(returns), (draws, len(returns)), generator=generator)
    means = returns[index].mean(1)
    tail = (1 - level) / 2
    return means.quantile(tail, dim=0), means.quantile(1 - tail, dim=0)
