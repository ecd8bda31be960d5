"""``bayesmeta train | evaluate | diagnose | list``: Hydra around the library calls.

Exit codes: 0 done, 1 a job failed, 2 the configuration is wrong, 130 / 143 / 138 stopped by SIGINT / SIGTERM / SIGUSR1
after saving. Nothing heavy is imported before the configuration has been checked.
"""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from bayesmeta.config import ConfigError, check_pair, did_you_mean, flat, run_name, validate, without_schema
from bayesmeta.configs import help_text, listing
from bayesmeta.folder import RunFolder
from bayesmeta.signals import Interrupted

COMMANDS = {
    "train": "train an algorithm on a family of tasks",
    "evaluate": "adapt a trained agent to unseen tasks, every episode's return",
    "diagnose": "posterior diagnostics of a trained agent: netCDF and HTML",
    "list": "the algorithms, tasks and experiments there are",
}
CONFIGS = "pkg://bayesmeta.configs"


def main() -> None:
    """The console script."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(arguments: list[str]) -> int:
    """Run one command line; the exit code."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"usage: bayesmeta COMMAND [key=value ...]\n\n{listed}\n\n`bayesmeta COMMAND --help` says more.")
        print('Shell completion: eval "$(bayesmeta train -sc install=bash)"')
        return 0
    if command == "--version":
        from bayesmeta import __version__

        print(__version__)
        return 0
    if command in ("-sc", "--shell-completion", "--shell_completion"):
        return complete(rest)
    if command == "list":
        print(listing())
        return 0
    if command not in COMMANDS:
        return complain(ConfigError(f"{command}: no such command.{did_you_mean(command, COMMANDS)} {_all(COMMANDS)}"))
    if "-h" in rest or "--help" in rest:
        print(help_text(command, rest))
        return 0
    return run_hydra(command, rest)


class JobError(RuntimeError):
    """A job did what it should and the answer is bad news: said without a traceback."""


@dataclass(frozen=True)
class Job:
    """One composed configuration: the values, the option chosen in each group, the command's overrides."""

    config: dict[str, Any]
    choices: dict[str, str]
    overrides: list[str]
    several: bool


def run_hydra(command: str, arguments: list[str]) -> int:
    """Compose the command's configuration (or each of a sweep's) and run its job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    several = any(a in ("-m", "--multirun") for a in arguments)
    failed: list[tuple[str, int]] = []

    def run(composed: Any) -> None:
        info = HydraConfig.get()
        overrides = list(info.overrides.task)
        if several:
            print(f"\njob {info.job.num}: {' '.join(overrides)}", flush=True)
        try:
            config: Any = OmegaConf.to_container(composed, resolve=True)
            choices = {k: v for k, v in info.runtime.choices.items() if v is not None and not k.startswith("hydra/")}
            # An experiment's own keys are checked too: they are no defaults.
            plain = {group: option for group, option in choices.items() if group != "experiment"}
            validate(config, cache(lambda: defaults(command, plain, arguments)))
            JOBS[command](Job(config, choices, overrides, several))
        except Exception as error:
            failed.append((" ".join(overrides), complain(error)))
            if several:
                raise  # Hydra counts it and goes on with the next job; sys.exit would end the sweep

    # Hydra's parser takes key=value arguments only in one row: the flag goes before them.
    flag = ["-m"] if several else []
    sys.argv = ["bayesmeta", *flag, *(quoted(a) for a in arguments if a not in ("-m", "--multirun"))]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    try:
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=command)(run)()
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except Exception as error:
        if not failed:
            return complain(explain(error, command, arguments))
    if failed and several:
        print(f"\n{len(failed)} failed; the same command again repeats only what is not done:")
        print("\n".join(f"  {overrides}" for overrides, _ in failed))
        return 1
    return failed[0][1] if failed else 0


def train_job(job: Job) -> None:
    config = job.config
    check_pair(config, task_configs, job.choices["task"])
    name = run_name(job.overrides, config["seed"])
    if config["run_dir"] is None:
        run_dir = Path("runs") / f"{job.choices['algorithm']}-{job.choices['task']}" / name
    else:
        run_dir = Path(config["run_dir"]) / name if job.several else Path(config["run_dir"])
    folder = RunFolder(run_dir)
    config["run_dir"] = str(folder.path)
    folder.check(config["resume"], without_schema(config))
    if folder.finished(config["iterations"]):
        print(f"{run_dir} is done: nothing left to do (a larger `iterations` would continue it)")
        return
    from bayesmeta.runs import train_run

    summary = train_run(config, run_dir)
    print(f"done: {summary.iteration} iterations, {summary.cpu_seconds:.0f} s of CPU, {summary.wall_seconds:.0f} s")
    if summary.returns:
        from bayesmeta.logging import described

        print(f"test {described(summary.returns, summary.stages)}")


def evaluate_job(job: Job) -> None:
    check_run_folder(job.config["run"])
    from bayesmeta.runs import evaluate_run

    print(evaluate_run(job.config))


def diagnose_job(job: Job) -> None:
    check_run_folder(job.config["run"])
    from bayesmeta.diagnostics.run import diagnose
    from bayesmeta.runs import chosen_device

    config = job.config
    device = chosen_device(config["device"], config["threads"])
    options = {name: config[name] for name in ("checkpoint", "tasks", "episodes", "draws", "seed", "trust")}
    if not diagnose(Path(config["run"]), device=device, **options):
        raise JobError(f"a diagnostic of {config['run']} did not pass; the report says which")


JOBS: dict[str, Callable[[Job], None]] = {"train": train_job, "evaluate": evaluate_job, "diagnose": diagnose_job}


def quoted(argument: str) -> str:
    """A folder given as ``run=`` or ``run_dir=`` in quotes, so that Hydra's grammar leaves its characters alone."""
    key, _, value = argument.partition("=")
    if key not in ("run", "run_dir") or value in ("", "null") or value[0] in "'\"":
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def check_run_folder(run: str | None) -> None:
    """Raise ConfigError unless ``run`` is a folder with something to load, naming those that are."""
    if run is not None and RunFolder(run).config.is_file():
        return
    found = sorted(Path("runs").glob("*/*/config.yaml"), key=lambda p: p.stat().st_mtime, reverse=True)
    folders = [str(p.parent) for p in found]
    near = did_you_mean(run, folders) if run else ""
    valid = f" Newest here: {', '.join(folders[:5])}" if folders else " There is none under ./runs."
    raise ConfigError(f"run = {run or 'null'}: expected a run folder, run=DIR.{near}{valid}")


def defaults(command: str, choices: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """The configuration that the chosen groups give by themselves; empty if they give none."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    overrides = [f"{group}={option}" for group, option in choices.items()]
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(initialize_config_module("bayesmeta.configs", version_base="1.3"))
            own = [b for a, b in pairwise(arguments) if a in ("-cd", "--config-dir")]
            overrides += [f"hydra.searchpath=[file://{Path(folder).absolute()}]" for folder in own]
        try:
            return OmegaConf.to_container(compose(command, overrides))  # type: ignore[return-value]
        except HydraException:
            return {}


def task_configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task option with its configuration, a user's own ``--config-dir`` included."""
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    loader = GlobalHydra.instance().config_loader()
    for name in loader.get_group_options("task"):
        found = loader.get_sources()
        result = next(source.load_config(f"task/{name}") for source in found if source.is_config(f"task/{name}"))
        yield name, OmegaConf.to_container(result.config)  # type: ignore[misc]


def explain(error: Exception, command: str, arguments: list[str]) -> Exception:
    """Hydra's complaint about a composition in the words of the rest: key, value, choices, nearest spelling."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options or [])
        return ConfigError(f"{group} = {option}: no such {group}.{did_you_mean(option, options)} {_all(options)}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override}: expected key=value; {str(error).splitlines()[0]}")
    match = re.search(r"Could not (?:override|append to config)[^']*'([^']+)'", str(error))
    if match and isinstance(error, HydraException):
        key = match.group(1).split("@")[0]
        value = next((a.partition("=")[2] for a in arguments if a.lstrip("+~").startswith(f"{key}=")), "")
        groups = dict(a.partition("=")[::2] for a in arguments if re.match(r"(task|algorithm|experiment)=", a))
        parent, _, _ = key.rpartition(".")
        beside: Any = defaults(command, groups, arguments)
        names = [n for n, _ in flat(without_schema(beside))]
        for part in filter(None, parent.split(".")):
            beside = beside.get(part, {}) if isinstance(beside, dict) else {}
        valid = [f"{parent}.{n}".lstrip(".") for n in beside if not n.startswith("_")]
        return ConfigError(f"{key} = {value}: no such key.{did_you_mean(key, [*names, *valid])} {_all(valid)}")
    if isinstance(error, HydraException):
        return ConfigError(f"{error}" + (f": {error.__cause__}" if error.__cause__ else ""))
    return error


def complain(error: Exception) -> int:
    """Say what went wrong: one message if it is meant for the user, a traceback if not. The exit code."""
    known = isinstance(error, (ConfigError, JobError, OSError))
    if known or type(error).__name__ in ("NonFiniteError", "CheckpointError"):  # importing them would import torch
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 2 if isinstance(error, ConfigError) else 1


def complete(arguments: list[str]) -> int:
    """Shell completion: Hydra asks ``bayesmeta`` itself, with the subcommand still in the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments and arguments[0].startswith("query="):
        if len(words) < 3:
            print(" ".join(name for name in COMMANDS if name.startswith(words[-1])))
            return 0
        if words[1] not in JOBS:
            return 0
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
        return run_hydra(words[1], ["-sc", *arguments])
    return run_hydra("train", ["-sc", *arguments])


def _all(names: Any) -> str:
    return f"Valid: {', '.join(names)}"


if __name__ == "__main__":
    main()
