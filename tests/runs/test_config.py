"""Values are checked against their schema; errors name the key, the value, what is valid, and the nearest spelling."""

import math
import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bayesmeta.config import (
    ConfigError,
    Rule,
    check_pair,
    did_you_mean,
    flat,
    run_name,
    same_run,
    validate,
    without_schema,
)
from bayesmeta.runs import _OWN

CONFIGS = files("bayesmeta.configs")
OPTIONS = [f for group in ("algorithm", "task") for f in CONFIGS.joinpath(group).iterdir() if f.name.endswith(".yaml")]


def no_defaults():
    pytest.fail("the defaults are composed only for keys without a rule")


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        ("int", [0, -5, 10**20], [1.0, True, "1", None, [1]]),
        ("int [1, 3]", [1, 2, 3], [0, 4, 1.5, math.nan]),
        ("int (0, inf)", [1, 10**9], [0, math.inf]),
        ("int|null [1, 3]", [None, 2], [0, "null"]),
        ("float (0, 1]", [1e-9, 1, 1.0], [0, 0.0, 1.0001, math.nan, "0.5", True]),
        ("float [0, inf]", [0, math.inf], [-1e-9, -math.inf]),
        ("float", [math.inf, -3, 2.5], ["x", None, False]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "x"], [1, None, True]),
        ("str|null", ["x", None], [1]),
        ("choice: a, full cov", ["a", "full cov"], ["b", "", None, 1, ["a"]]),
        ("choice|null: a", [None, "a"], ["b"]),
        ("list int [1, 10]", [[], [1, 10]], [[0], [1, "x"], 3, None, [True], [[1]]]),
        ("list float (0,1)", [[0.5]], [[0.5, 1.0]]),
        ("list choice: a, b", [["a", "b"]], ["a", ["c"]]),
        ("list|null int", [], []),
    ][:-1],
)
def test_rules(rule, good, bad):
    parsed = Rule.parse(rule)
    for value in good:
        parsed.check("key", value)
    for value in bad:
        with pytest.raises(ConfigError, match=re.escape(f"expected {parsed}")):
            parsed.check("key", value)


@given(st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["[]", "[)", "(]", "()"]), st.floats(-10, 10))
def test_ranges_are_what_their_brackets_say(low, width, brackets, value):
    high = low + width
    rule = Rule.parse(f"float {brackets[0]}{low!r}, {high!r}{brackets[1]}")
    inside = (low <= value if brackets[0] == "[" else low < value) and (
        value <= high if brackets[1] == "]" else value < high
    )
    for x, ok in ((value, inside), (low, brackets[0] == "[" and (brackets[1] == "]" or width > 0))):
        if ok:
            rule.check("x", x)
        else:
            with pytest.raises(ConfigError):
                rule.check("x", x)


@pytest.mark.parametrize(
    "text", ["", "flaot", "int 1, 2", "int [1, 2", "int [a, b]", "bool [0, 1]", "choice", "int: a"]
)
def test_a_malformed_rule_is_named(text):
    with pytest.raises(ConfigError, match=r"`_schema_` of algorithm\.lr: .*'"):
        Rule.parse(text, "algorithm.lr")


@pytest.mark.parametrize(
    "rule, value, message",
    [
        ("float (0, 1]", "abc", "a.lr = abc: expected a number in (0, 1], got a string."),
        ("float (0, 1]", 2, "a.lr = 2: expected a number in (0, 1]."),
        ("int [1, 4294967295]", 1.5, "a.lr = 1.5: expected an integer in [1, 4294967295], got a number."),
        ("choice: diagonal, full", "ful", "a.lr = ful: expected one of diagonal, full. Did you mean full?"),
        ("bool", None, "a.lr = null: expected true or false, got null."),
        ("int|null [1, 9]", True, "a.lr = true: expected an integer in [1, 9] or null, got a truth value."),
        ("list int", [1, "x"], "a.lr = [1, 'x']: expected a list, each item an integer, got a list."),
    ],
)
def test_messages(rule, value, message):
    with pytest.raises(ConfigError) as error:
        Rule.parse(rule).check("a.lr", value)
    assert str(error.value) == message


def test_nested_values_and_unknown_keys():
    def config(**changes):
        inner = {"_target_": "x.Y", "_schema_": {"lr": "float (0, 1]"}, "lr": 0.1} | changes
        return {"seed": 0, "algorithm": inner, "_schema_": {"seed": "int [0, 9]"}}

    validate(config(), no_defaults)
    with pytest.raises(ConfigError, match=r"algorithm\.lr = 2"):
        validate(config(lr=2), no_defaults)
    with pytest.raises(ConfigError, match=r"seed = 10"):
        validate(config() | {"seed": 10}, no_defaults)
    with pytest.raises(ConfigError, match=r"algorithm\.lrr: no such key\. Did you mean lr\? Valid here: lr$"):
        validate(config(lrr=1), config)
    with pytest.raises(ConfigError, match=r"^net: no such key\. Valid here: algorithm, seed$"):
        validate(config() | {"net": {"width": 3}}, config)


@pytest.mark.parametrize(
    "default, good, bad", [(3, 4, 4.5), (0.5, 4, "x"), (True, False, 1), ("x", "y", 2), ([1], [2, 3], [2, "x"])]
)
def test_without_a_rule_the_type_of_the_default_counts(default, good, bad):
    def config(value):
        return {"task": {"_target_": "x.Y", "value": value}}

    validate(config(good), lambda: config(default))
    with pytest.raises(ConfigError, match=r"task\.value = "):
        validate(config(bad), lambda: config(default))


@pytest.mark.parametrize("default", [None, []])
def test_a_default_that_says_nothing_allows_anything(default):
    for value in (1, "x", [2], None):
        validate({"value": value}, lambda: {"value": default})


def test_pairs():
    def pair(needs, kind):
        task = {"_schema_": {"_kind_": kind} if kind else {}}
        return {"algorithm": {"_target_": "a.b.PEARL", "_schema_": {"_task_": needs} if needs else {}}, "task": task}

    tasks = [(name, pair(None, kind)["task"]) for name, kind in (("a", "control"), ("b", "quiz"), ("c", "control"))]
    for needs, kind in (("control", "control"), (None, "control"), ("control", None), (None, None)):
        check_pair(pair(needs, kind), no_defaults, "b")
    with pytest.raises(ConfigError, match=r"^task = b: PEARL needs a control task, this is quiz\. Valid tasks: a, c$"):
        check_pair(pair("control", "quiz"), lambda: tasks, "b")


@pytest.mark.parametrize("file", OPTIONS, ids=lambda f: f.name)
def test_every_option_describes_itself_and_obeys_its_schema(file):
    text = file.read_text()
    assert text.startswith("# "), "the first line is the description that `bayesmeta list` shows"
    config = OmegaConf.to_container(OmegaConf.create(text))
    validate(config, lambda: config)
    keys = {key for key in config if not key.startswith("_")}
    keys -= {key for key in keys if isinstance(config[key], dict)}  # which have rules of their own
    assert keys == {key for key in config["_schema_"] if not key.startswith("_")}, "one rule for each value"
    for nested in (value for value in config.values() if isinstance(value, dict) and "_schema_" in value):
        assert set(nested["_schema_"]) <= set(nested)
    assert config["_target_"].startswith("bayesmeta.")


def test_schema_is_dropped_everywhere():
    config = {"a": {"_schema_": 1, "b": [{"_schema_": 2, "c": 3}]}, "_schema_": {}}
    assert without_schema(config) == {"a": {"b": [{"c": 3}]}}
    assert dict(flat({"a": {"b": 1, "c": [2]}, "d": None})) == {"a.b": 1, "a.c": [2], "d": None}


def test_same_command_same_folder():
    orders = [["algorithm.lr=0.1", "task.horizon=5"], ["task.horizon=5", "algorithm.lr=0.1"]]
    free = [
        "algorithm=pearl",
        "iterations=9",
        "resume=must",
        "checkpoint.keep=1",
        "progress=bar",
        "run_dir=x",
        "seed=3",
    ]
    assert {run_name([*order, *free], 3) for order in orders} == {"algorithm.lr-0.1+task.horizon-5+seed-3"}
    assert run_name([], 0) == "seed-0"


@given(st.lists(st.from_regex(r"\+?[a-z]{1,9}\.[a-z]{1,9}=[ -~]{0,30}", fullmatch=True), unique=True, max_size=8))
def test_folder_names_are_safe(overrides):
    name = run_name(overrides, 1)
    assert re.fullmatch(r"[\w.+-]{1,140}", name)
    assert run_name(overrides[::-1], 1) == name
    assert run_name([*overrides, "algorithm.new=1"], 1) != name


def test_settings_that_may_change_when_a_run_goes_on():
    stored = {"seed": 0, "iterations": 10, "algorithm": {"lr": 0.1}, "checkpoint": {"keep": 2}}
    same_run(stored, stored | {"iterations": 20, "checkpoint": {"keep": 3}, "run_dir": "elsewhere"})
    for change in ({"seed": 1}, {"algorithm": {"lr": 0.2}}, {"algorithm": {"lr": 0.1, "new": 1}}, {"algorithm": {}}):
        with pytest.raises(ConfigError, match="the run in this folder was begun with"):
            same_run(stored, stored | change)


def test_nearest_spelling():
    assert did_you_mean("chetah_vel", ["ant_dir", "cheetah_vel"]) == " Did you mean cheetah_vel?"
    assert did_you_mean("lrr", ["algorithm.lr", "seed"]) == " Did you mean algorithm.lr?"
    assert did_you_mean("xyz", ["ant_dir"]) == ""


@pytest.mark.parametrize("file", [f for f in OPTIONS if "_target_" in f.read_text()], ids=lambda f: f.name)
def test_every_class_that_a_configuration_names_is_trusted_in_a_run_folder(file):
    config = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    targets = [value for key, value in flat(config) if key.endswith("_target_")]
    assert targets and all(_OWN.fullmatch(target) for target in targets)


def test_other_classes_are_not():
    assert not _OWN.fullmatch("os.system") and not _OWN.fullmatch("bayesmeta.rl.q_learner.torch.load")
