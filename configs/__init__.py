"""The configuration files of the commands and of the options to choose from, and what they say of themselves.

The first comment line of a file is its description; its other comments are its documentation, shown by ``--help``.
"""

import re
from collections.abc import Sequence
from importlib.resources import files

GROUPS = ("algorithm", "task", "experiment")

FLAGS = """\
Flags:
  -m, --multirun       run every combination of comma-separated values: seed=0,1,2 algorithm.lr=1e-3,3e-4
  --config-dir DIR     options of your own: DIR/task/my_task.yaml is task=my_task
  --cfg job            print the configuration instead of running it
  --hydra-help         what else Hydra, which composes the configuration, can do
"""


def options(group: str) -> dict[str, str]:
    """The text of each option's file in a group, by name."""
    found = (f for f in files(__name__).joinpath(group).iterdir() if f.name.endswith(".yaml"))
    return {f.name[:-5]: f.read_text() for f in sorted(found, key=lambda f: f.name)}


def description(text: str) -> str:
    """The first comment line of a file that is not for Hydra."""
    return next((line.lstrip("# ") for line in text.splitlines() if line[:1] == "#" and "@package" not in line), "")


def listing() -> str:
    """Every option of every group with its description."""
    found = {group: options(group) for group in GROUPS}
    width = max(len(name) for texts in found.values() for name in texts)
    lines = []
    for group, texts in found.items():
        lines.append(f"{group}=")
        lines += [f"  {name:<{width}}  {description(text)}" for name, text in texts.items()]
    return "\n".join(lines)


def help_text(command: str, arguments: Sequence[str]) -> str:
    """What a command does, its settings as their file documents them, and those of the options in ``arguments``."""
    text = files(__name__).joinpath(f"{command}.yaml").read_text()
    parts = [f"bayesmeta {command}: {description(text)}"]
    if command == "train":
        choices = [f"  {group}={'|'.join(options(group))}" for group in GROUPS]
        parts += ["Choices (`bayesmeta list` says what each is):\n" + "\n".join(choices)]
    parts += ["Settings, each as key=value; `_schema_` says what is valid:\n" + _settings(text)]
    for group, _, name in (argument.partition("=") for argument in arguments):
        if group in GROUPS and name in (found := options(group)):
            parts.append(f"{group}={name}: {description(found[name])}\n{_settings(found[name])}")
    return "\n\n".join(part.rstrip() for part in [*parts, FLAGS])


def _settings(text: str) -> str:
    """The top-level entries of a file but for what is for Hydra, indented."""
    entries = re.split(r"\n(?=[^\s#])", text)
    kept = [e for e in entries if not e.startswith(("#", "defaults:", "hydra:", "_target_", "_partial_", "_convert_"))]
    return "\n".join(f"  {line}" for entry in kept for line in entry.rstrip().splitlines())
