"""The words and tables of a report, as HTML."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from bayesmeta.diagnostics.decoding import squared_errors, value_errors
from bayesmeta.diagnostics.intervals import bootstrap_interval, iqm
from bayesmeta.diagnostics.results import array, attribute
from bayesmeta.diagnostics.words import Verdict

_FOLDED = ("config", "versions")  # long attributes
_ELSEWHERE = ("implied_prior",)  # has a section of its own


def summary(tree: xr.DataTree) -> str:
    """What was evaluated, in one line."""
    new = "" if "exploration" in tree.children else "unseen"  # which problem it is, the agent is not told
    words = [" ".join(f"{tree['posterior'].sizes['task']} {new} {attribute(tree, 'split', '')} tasks".split())]
    if "trajectory" in tree.children:
        words.append(f"{tree['trajectory'].sizes['episode']} episodes each")
    if attribute(tree, "iteration") is not None:
        words.append(f"agent of iteration {attribute(tree, 'iteration')}")
    if attribute(tree, "training_seed") is not None:
        words.append(f"training seed {attribute(tree, 'training_seed')}")
    return ", ".join([*words, str(attribute(tree, "created_at", ""))[:10]])


def verdict_list(found: Sequence[Verdict]) -> str:
    """Every verdict with its meaning, under a sentence that counts the failures."""
    lines = "".join(
        f'<div class="verdict"><div><span class="badge {v.outcome}">{v.outcome}</span></div>'
        f"<div><b>{text(v.question)}</b><br>{text(v.meaning)}</div><div>{text(v.found)}</div></div>"
        for v in found
    )
    gates = [v for v in found if v.outcome in ("passed", "failed")]
    failures = sum(v.outcome == "failed" for v in gates)
    sentence = f"{failures} of {len(gates)} checks failed." if failures else f"All {len(gates)} checks passed."
    return _card(f"<p><b>{sentence}</b></p>{lines}")


def references(group: xr.Dataset) -> dict[str, np.ndarray]:
    """Reference returns per task by name."""
    names = [str(name) for name in group.data_vars if str(name).startswith("reference_")]
    return {name.removeprefix("reference_"): group[name].to_numpy() for name in names}


def returns_table(tree: xr.DataTree) -> str:
    """Returns by adaptation episode, and the references'."""
    group = tree["trajectory"].dataset
    returns = group["return"].to_numpy()
    low, high = bootstrap_interval(returns)
    middle = iqm(returns)
    unpaid = attribute(tree, "exploration_episodes", 0)
    rows = [
        [f"episode {k}", number(returns[:, i].mean()), f"{number(low[i])} to {number(high[i])}", number(middle[i])]
        for i, k in enumerate(group["episode"].to_numpy())
        if i >= unpaid
    ]
    if "unseen" in tree.children:
        other = array(tree, "unseen", "return")[:, -1]
        bounds = " to ".join(number(bound) for bound in bootstrap_interval(other))
        rows.append(
            [f"episode {returns.shape[1]}, problems not trained on", number(other.mean()), bounds, number(iqm(other))]
        )
    for name, values in references(group).items():
        known = values if values.ndim == 2 else values[:, None]
        label = "{}, episode {}" if values.ndim == 2 else "{}"
        rows += [
            [label.format(name.replace("_", " "), k + 1), number(v.mean()), "", number(iqm(v))]
            for k, v in enumerate(known.T)
        ]
    return _table(["", "mean return", "95 % interval", "interquartile mean"], rows)


def context_table(tree: xr.DataTree) -> str:
    """What is known after how many data."""
    steps = array(tree, "posterior", "context_step")
    stats = tree["fit_stats"].dataset
    columns = {
        "contraction": stats["contraction"].values.mean((1, 2)),
        "information (nats)": stats["kl_total"].values.mean(1),
    }
    for group, name in (("decoded", "RMSE decoded"), ("exact", "RMSE exact")):
        if group in tree.children:
            columns[name] = np.sqrt(squared_errors(tree, group).mean(1))
    for name, errors in value_errors(tree).items():
        columns[f"RMSE of the function, {name}"] = np.sqrt(errors.mean(1))
    columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    rows = [[str(step), *(number(values[c]) for values in columns.values())] for c, step in enumerate(steps)]
    return _table(["data seen", *columns], rows)


def exploration_table(tree: xr.DataTree) -> str:
    """What each step of exploration told, and what the belief says after it."""
    group = tree["exploration"].to_dataset()
    names = {
        "exact_nats": "exact nats",
        "nats": "nats of the belief",
        "code_nats": "nats of the code",
        "kl": "KL from exact",
        "ece": "calibration error",
        "exact_ece": "by chance",
        "bonus": f"bonus ({attribute(tree, 'bonus_unit')})",
        "real": "still exploring",
    }
    columns = {label: group[name].to_numpy() for name, label in names.items() if name in group}
    means = {label: values.mean(1) if values.ndim == 2 else values for label, values in columns.items()}
    rows = [
        [str(step), *(number(values[c]) for values in means.values())]
        for c, step in enumerate(group["context_step"].to_numpy())
    ]
    return _table(["steps", *means], rows)


def settings(tree: xr.DataTree) -> str:
    """The identity of the run, then its resolved configuration and the versions, folded away."""
    names = sorted({str(name).removesuffix("_json") for name in tree.attrs} - {*_FOLDED, *_ELSEWHERE})
    values = {name: attribute(tree, name) for name in names}
    lines = "".join(f"<tr><th>{text(n.replace('_', ' '))}</th><td>{text(str(v))}</td></tr>" for n, v in values.items())
    folded = "".join(
        f'<details class="card"><summary>{name}</summary><pre>{text(json.dumps(value, indent=2))}</pre></details>'
        for name in _FOLDED
        if (value := attribute(tree, name)) is not None
    )
    return f"{_card(f'<table>{lines}</table>')}{folded}"


def preformatted(content: str) -> str:
    """Lines as they are."""
    return _card(f"<pre>{text(content)}</pre>")


def glossary(words: Mapping[str, str]) -> str:
    """Words and what they mean."""
    return f"<dl>{''.join(f'<dt>{text(word)}</dt><dd>{text(meaning)}</dd>' for word, meaning in words.items())}</dl>"


def text(value: str) -> str:
    """Text as HTML."""
    return html.escape(value)


def number(value: Any) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def numbers(values: Sequence[Any] | np.ndarray) -> str:
    """At most twelve numbers in a row."""
    return ", ".join(number(value) for value in values[:12]) + (", ..." if len(values) > 12 else "")


def few(count: int, most: int = 8) -> list[int]:
    """All of ``count`` places, or, where they are more than ``most``, some from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kind = ["", *[' class="number"'] * (len(header) - 1)]
    head = "".join(f"<th{k}>{text(name)}</th>" for k, name in zip(kind, header, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{text(cell)}</td>' for k, cell in zip(kind, row, strict=True))}</tr>" for row in rows
    )
    return _card(f"<table><tr>{head}</tr>{body}</table>")


def _card(content: str) -> str:
    return f'<div class="card scroll">{content}</div>'
