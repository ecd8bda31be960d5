"""Checking a composed configuration before anything heavy is imported, and naming its run.

A mapping states what its values may be in a ``_schema_`` node beside them::

    lr: 1e-3
    latent_dim: 5
    covariance: diagonal
    widths: [64, 64]
    _schema_:
      lr: float (0, 1]                    # round = exclusive, square = inclusive; inf is allowed
      latent_dim: int [1, 1000]
      covariance: "choice: diagonal, full"
      widths: list int [1, 10000]
      budget: float|null [0, inf)         # may be null

A key that the schema does not name is checked against the type of its default. ``_kind_: control`` in a task's schema
and ``_task_: control`` in an algorithm's say which go together. The node is dropped before anything is built.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

BUILD_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_", "_schema_"}
# What may change when a run is continued: where it lives, how long it goes on, what is written on the way.
FREE_KEYS = ("run_dir", "resume", "iterations", "progress", "tensorboard", "checkpoint")


class ConfigError(ValueError):
    """A configuration that cannot be run: the message names the key, the value and the valid choices."""


@dataclass(frozen=True)
class Rule:
    """What one value may be; see the module's docstring for the notation."""

    kind: str
    many: bool = False
    null: bool = False
    low: float = -math.inf
    high: float = math.inf
    brackets: str = "[]"
    choices: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str, key: str = "") -> "Rule":
        """Read the notation. Raises ConfigError if it is malformed."""
        match = _RULE.fullmatch(str(text).strip())
        if match is None:
            raise ConfigError(
                f"`_schema_` of {key}: cannot read {text!r}; expected e.g. `float (0, 1]` or `choice: a, b`"
            )
        many, kind, null, choices, left, low, high, right = match.groups()
        if (kind == "choice") != (choices is not None) or (left and kind not in ("int", "float")):
            raise ConfigError(f"`_schema_` of {key}: {text!r}: choices go with `choice`, a range with `int` or `float`")
        names = tuple(name.strip() for name in choices.split(",")) if choices else ()
        try:
            bounds = (float(low), float(high), left + right) if left else (-math.inf, math.inf, "[]")
        except ValueError as error:
            raise ConfigError(f"`_schema_` of {key}: {text!r}: expected numbers as bounds") from error
        return Rule(kind, bool(many), bool(null), *bounds, names)

    def check(self, key: str, value: Any) -> None:
        """Raise ConfigError unless ``value`` is valid."""
        if self.kind == "any" or (value is None and self.null):
            return
        items = value if self.many and isinstance(value, list) else [value]
        if self.many == isinstance(value, list) and all(map(self._typed, items)) and all(map(self._inside, items)):
            return
        got = "" if all(map(self._typed, items)) else f", got {_type_name(value)}"
        raise ConfigError(f"{key} = {_show(value)}: expected {self}{got}.{did_you_mean(str(value), self.choices)}")

    def _typed(self, value: Any) -> bool:
        if isinstance(value, bool):
            return self.kind in ("bool", "any")
        types: dict[str, Any] = {
            "int": int,
            "float": (int, float),
            "str": str,
            "choice": str,
            "bool": bool,
            "any": object,
        }
        return isinstance(value, types[self.kind])

    def _inside(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.choices
        if self.kind not in ("int", "float"):
            return True
        above = self.low < value or (self.brackets[0] == "[" and value == self.low)
        return above and (value < self.high or (self.brackets[1] == "]" and value == self.high))

    def __str__(self) -> str:
        if self.kind == "choice":
            text = "one of " + ", ".join(self.choices)
        elif self.kind == "bool":
            text = "true or false"
        else:
            text = {"int": "an integer", "float": "a number", "str": "a string"}[self.kind]
            if (self.low, self.high) != (-math.inf, math.inf):
                text += f" in {self.brackets[0]}{self.low:.12g}, {self.high:.12g}{self.brackets[1]}"
        return ("a list, each item " if self.many else "") + text + (" or null" if self.null else "")


_RULE = re.compile(
    r"(list )?(int|float|bool|str|choice)(\|null)?(?:: *(.+)|(?: *([\[(]) *([^\s,]+) *, *([^\s\])]+) *([\])]))?)"
)


def validate(config: dict[str, Any], default: Callable[[], dict[str, Any]]) -> None:
    """Check every value of a composed configuration; ``default()`` composes it without the value overrides.

    It is called only for keys that no ``_schema_`` names. Raises ConfigError at the first fault.
    """
    _validate(config, config.get("_schema_", {}), default, "")


def _validate(node: dict[str, Any], schema: dict[str, Any], default: Callable[[], Any], path: str) -> None:
    for key, value in node.items():
        full = f"{path}{key}"
        if key in BUILD_KEYS:
            continue
        if key in schema:
            Rule.parse(schema[key], full).check(full, value)
            continue
        nested = isinstance(value, dict)
        if not (nested and "_schema_" in value):
            known = default() or {}
            if key not in known:
                names = [k for k in sorted({*known, *schema}) if not k.startswith("_")]
                raise ConfigError(f"{full}: no such key.{did_you_mean(key, names)} Valid here: {', '.join(names)}")
        if nested:
            _validate(value, value.get("_schema_", {}), partial(_entry, default, key), f"{full}.")
        else:
            _rule_of(known[key]).check(full, value)


def _entry(default: Callable[[], Any], key: str) -> Any:
    return (default() or {}).get(key)


def _rule_of(default: Any) -> Rule:
    """The rule that a default's type implies; an empty list or a null default says nothing."""
    many = isinstance(default, list)
    kind = next((k for k, t in _KINDS if isinstance(default[0] if many and default else default, t)), "any")
    return Rule(kind, many=many and kind != "any")


_KINDS: tuple[tuple[str, type], ...] = (("bool", bool), ("int", int), ("float", float), ("str", str))


def check_pair(config: dict[str, Any], tasks: Callable[[], Iterable[tuple[str, dict[str, Any]]]], task: str) -> None:
    """Raise ConfigError if the algorithm needs another kind of task; ``tasks()`` gives all names and configurations."""
    algorithm = config["algorithm"].get("_schema_", {})
    needs, kind = algorithm.get("_task_"), config["task"].get("_schema_", {}).get("_kind_")
    if needs is None or kind is None or needs == kind:
        return
    valid = [name for name, other in tasks() if other.get("_schema_", {}).get("_kind_") == needs]
    target = config["algorithm"].get("_target_", "algorithm").rpartition(".")[2]
    raise ConfigError(f"task = {task}: {target} needs a {needs} task, this is {kind}. Valid tasks: {', '.join(valid)}")


def without_schema(node: Any) -> Any:
    """The configuration as it is built and stored: without the ``_schema_`` nodes."""
    if isinstance(node, dict):
        return {k: without_schema(v) for k, v in node.items() if k != "_schema_"}
    return [without_schema(v) for v in node] if isinstance(node, list) else node


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of every leaf."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from flat(value, f"{path}.{key}" if path else str(key))


def same_run(stored: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ConfigError if two configurations differ in more than what may change when a run is continued."""
    old, new = dict(flat(stored)), dict(flat(config))
    for key in sorted({*old, *new}):
        if key.split(".")[0] not in FREE_KEYS and old.get(key) != new.get(key):
            raise ConfigError(
                f"{key} = {_show(new.get(key))}: the run in this folder was begun with {_show(old.get(key))}; "
                f"continue it with that, or choose another run_dir"
            )


def run_name(overrides: Iterable[str], seed: int) -> str:
    """A folder name that depends only on what the command asks for, whatever the order: the same command finds it.

    It has no character that would need quoting in a later ``run=DIR``.
    """
    names = {o: o.lstrip("+~").split("=")[0] for o in overrides}
    free = {o for o, key in names.items() if key in ("algorithm", "task", "seed") or key.split(".")[0] in FREE_KEYS}
    asked = [*sorted(names.keys() - free), f"seed={seed}"]
    name = "+".join(asked).replace("=", "-")
    clean = re.sub(r"[^\w.+-]", "_", name)
    if clean == name and len(name) <= 120:
        return name
    return f"{clean[:100]}-{hashlib.sha256(','.join(asked).encode()).hexdigest()[:8]}"


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """``" Did you mean X?"`` or nothing."""
    valid = list(valid)
    names = {name.rpartition(".")[2]: name for name in valid} | {name: name for name in valid}
    near = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(value: Any) -> str:
    names = {bool: "a truth value", int: "an integer", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
