"""One HTML file that needs nothing else: figures, tables and what they mean."""

import base64
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bayesmeta.diagnostics import figures, navigation
from bayesmeta.diagnostics.decoding import squared_errors
from bayesmeta.diagnostics.intervals import bootstrap_interval, iqm
from bayesmeta.diagnostics.plotting import rendered
from bayesmeta.diagnostics.results import attribute, parameters
from bayesmeta.diagnostics.truth import exact_posterior
from bayesmeta.diagnostics.verdicts import passed, verdicts
from bayesmeta.diagnostics.words import CSS, GLOSSARY
from bayesmeta.folder import RunFolder, write_atomically
from bayesmeta.types import TaskFamily


@dataclass(frozen=True)
class Panel:
    """A figure with its caption, which is also what a reader who cannot see it gets."""

    draw: Callable[[], Figure]
    alternative: str
    caption: str
    wide: bool = False

    def html(self) -> str:
        image = base64.b64encode(rendered(self.draw)).decode()
        kind = "wide" if self.wide else "small"
        return (
            f'<figure class="{kind}"><img src="data:image/png;base64,{image}" alt="{html.escape(self.alternative)}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


def write_report(
    tree: xr.DataTree, path: Path | str, *, family: TaskFamily | None = None, run: RunFolder | None = None
) -> Path:
    """Write the report of some results. ``family`` adds the exact belief to paths, ``run`` the learning curve."""
    path = Path(path)
    write_atomically(path, report(tree, family, run))
    return path


def report(tree: xr.DataTree, family: TaskFamily | None = None, run: RunFolder | None = None) -> str:
    """The page, in ASCII."""
    found = verdicts(tree)
    title = f"{attribute(tree, 'algorithm', attribute(tree, 'inference'))} on {attribute(tree, 'family')}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(_summary(tree))}</p>',
        _section("What was found", f'<div class="card scroll">{_verdict_table(found, passed(found))}</div>'),
    ]
    for heading, text, panels, table in _sections(tree, family, run):
        shown = "".join(panel.html() for panel in panels)
        body.append(_section(heading, f"<p>{_text(text)}</p>", f'<div class="figures">{shown}</div>', table))
    body += [_section("What the words mean", _glossary()), _section("How this was made", _settings(tree))]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}: bayesmeta</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


Section = tuple[str, str, list[Panel], str]


def _sections(tree: xr.DataTree, family: TaskFamily | None, run: RunFolder | None) -> list[Section]:
    """Heading, words, figures and a table of every section that the results have something for."""
    sections = []
    if "trajectory" in tree.children:
        panels = _behaviour(tree, family, run)
        text = "Every task is new to the agent. It acts, infers the task from what it sees, and acts again."
        sections.append(("Behaviour", text, panels, _returns_table(tree)))
    text = (
        "How fast the belief finds out which task this is, and how much of that could be known: every point is the belief "
        "after the first so many data of a trial."
    )
    sections.append(("What is known after how much data", text, _knowledge(tree), _context_table(tree)))
    text = "The latent that the agent infers: what its dimensions hold, and how the belief about it moves."
    sections.append(("The latent", text, _latent(tree), ""))
    return sections


def _behaviour(tree: xr.DataTree, family: TaskFamily | None, run: RunFolder | None) -> list[Panel]:
    means = ", ".join(f"{value:.3g}" for value in tree["trajectory"]["return"].values.mean(0))
    panels = [
        Panel(
            lambda: figures.adaptation(tree),
            f"Mean return by adaptation episode: {means}.",
            "Return of each adaptation episode: mean over tasks with its 95 % interval, every task as a dot, and what "
            "reference agents get.",
        )
    ]
    records = _json_lines(run.evaluation / "returns.jsonl") if run else []
    if len(records) > 1:
        steps = {line["iteration"]: line["env_steps"] for line in _json_lines(run.metrics) if "env_steps" in line}
        last = ", ".join(f"{value:.3g}" for value in records[-1]["returns"])
        panels.append(
            Panel(
                lambda: figures.learning(records, steps),
                f"Learning curve of the test return by adaptation episode; at the last evaluation {last}.",
                "Test return of each adaptation episode in the course of training, mean and 95 % interval over tasks.",
            )
        )
    if navigation.is_plane(tree):
        exact = exact_posterior(family) if family else None
        panels.append(
            Panel(
                lambda: navigation.paths(tree, exact),
                "Paths of the agent in four tasks, one panel per episode, with start and goal.",
                "Paths of the first four tasks. Blue dots: goals that the agent thinks possible when the episode begins, "
                "decoded from draws of its belief; the ring is the one it acts on. Grey: what exact inference believes, "
                "given the same data; the darker the surer.",
                wide=True,
            )
        )
    return panels


def _knowledge(tree: xr.DataTree) -> list[Panel]:
    stats = tree["fit_stats"].dataset
    panels = []
    if "decoded" in tree.children:
        error = np.sqrt(squared_errors(tree, "decoded").mean(1))
        exact = " The exact posterior on the same data is the limit." if "exact" in tree.children else ""
        panels.append(
            Panel(
                lambda: figures.learned_and_exact(tree),
                f"Error of the decoded task parameters falls from {error[0]:.3g} to {error[-1]:.3g} with data.",
                f"Error of the true task parameters as decoded from the belief on held-out tasks.{exact}",
            )
        )
    contraction = stats["contraction"].values.mean(1)[-1]
    panels.append(
        Panel(
            lambda: figures.per_dimension(tree, "contraction", "Posterior contraction", "1 - posterior / prior variance"),
            f"Mean contraction per latent dimension after all data: {_numbers(contraction)}.",
            "Contraction of each latent dimension: 1 means known, 0 untouched, below 0 wider than the prior.",
        )
    )
    kl = stats["kl"].values[-1]
    if not np.isnan(kl).any():
        panels.append(
            Panel(
                lambda: figures.per_dimension(tree, "kl", "Information gained", "KL from the prior (nats)"),
                f"KL from the prior per latent dimension after all data: {_numbers(kl.mean(0))} nats.",
                "Information about the latent, per dimension and in all, in nats.",
            )
        )
        panels.append(
            Panel(
                lambda: figures.active(tree),
                f"KL of each latent dimension after all data, in nats: {_numbers(kl.mean(0))}.",
                "Which dimensions data move, after all data of the trial.",
            )
        )
    return panels


def _latent(tree: xr.DataTree) -> list[Panel]:
    panels = [
        Panel(
            lambda: figures.prior_and_posterior(tree),
            "Densities of the prior and of four tasks' posteriors, one panel per latent dimension.",
            "Beliefs about four tasks after all data (colours), and the prior (grey). Dimensions by information.",
            wide=True,
        )
    ]
    names, _ = parameters(tree)
    if names:
        panels.append(
            Panel(
                lambda: figures.latent_map(tree),
                f"Posterior means of all tasks in a plane at several context sizes, coloured by {', '.join(names[:2])}.",
                "Where the posterior means of all tasks lie, one dot a task, coloured by its true parameters: an ordered "
                "picture says that the latent has found them.",
                wide=True,
            )
        )
    return panels


def _returns_table(tree: xr.DataTree) -> str:
    group = tree["trajectory"].dataset
    returns = group["return"].values
    low, high = bootstrap_interval(returns)
    middle = iqm(returns)
    rows = [
        [f"episode {k}", _n(returns[:, i].mean()), f"{_n(low[i])} to {_n(high[i])}", _n(middle[i])]
        for i, k in enumerate(group["episode"].values)
    ]
    rows += [[name.replace("_", " "), _n(v.mean()), "", ""] for name, v in figures.references(group).items()]
    return _table(["", "mean return", "95 % interval", "interquartile mean"], rows)


def _context_table(tree: xr.DataTree) -> str:
    steps = tree["posterior"]["context_step"].values
    stats = tree["fit_stats"].dataset
    columns = {
        "contraction": stats["contraction"].values.mean((1, 2)),
        "information (nats)": stats["kl_total"].values.mean(1),
    }
    for group, name in (("decoded", "RMSE decoded"), ("exact", "RMSE exact")):
        if group in tree.children:
            columns[name] = np.sqrt(squared_errors(tree, group).mean(1))
    rows = [[str(step), *(_n(values[c]) for values in columns.values())] for c, step in enumerate(steps)]
    return _table(["data seen", *columns], rows)


def _verdict_table(found: Sequence[Any], good: bool) -> str:
    lines = "".join(
        f'<tr><td><span class="badge {v.outcome}">{v.outcome}</span></td><td><b>{_text(v.question)}</b><br>'
        f"{_text(v.meaning)}</td><td>{_text(v.found)}</td></tr>"
        for v in found
    )
    gates = [v for v in found if v.outcome != "note"]
    failures = sum(v.outcome == "failed" for v in found)
    verdict = f"All {len(gates)} checks passed." if good else f"{failures} of {len(gates)} checks failed."
    return f"<p><b>{verdict}</b></p><table><tr><th></th><th>Question</th><th>Found</th></tr>{lines}</table>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kind = ["", *[' class="number"'] * (len(header) - 1)]
    head = "".join(f"<th{k}>{_text(name)}</th>" for k, name in zip(kind, header, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{_text(cell)}</td>' for k, cell in zip(kind, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'


def _summary(tree: xr.DataTree) -> str:
    tasks = tree["posterior"].sizes["task"]
    words = [f"{tasks} unseen {attribute(tree, 'split', '')} tasks".replace("  ", " ")]
    if "trajectory" in tree.children:
        words.append(f"{tree['trajectory'].sizes['episode']} episodes each")
    if attribute(tree, "iteration") is not None:
        words.append(f"agent of iteration {attribute(tree, 'iteration')}")
    if attribute(tree, "training_seed") is not None:
        words.append(f"training seed {attribute(tree, 'training_seed')}")
    return ", ".join([*words, str(attribute(tree, "created_at", ""))[:10]])


def _settings(tree: xr.DataTree) -> str:
    """Identity, then the resolved configuration and the versions, folded away."""
    long = ("config", "versions")
    names = sorted({name.removesuffix("_json") for name in tree.attrs} - set(long))
    rows = [[name.replace("_", " "), str(attribute(tree, name))] for name in names]
    folded = [
        f'<details class="card"><summary>{_text(name)}</summary><pre>{_text(json.dumps(value, indent=2))}</pre></details>'
        for name in long
        if (value := attribute(tree, name)) is not None
    ]
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    note = "<p>The numbers of every figure are in results.nc beside this file; ArviZ and xarray open it.</p>"
    return f'{note}<div class="card scroll"><table>{lines}</table></div>{"".join(folded)}'


def _glossary() -> str:
    return f"<dl>{''.join(f'<dt>{_text(word)}</dt><dd>{_text(text)}</dd>' for word, text in GLOSSARY.items())}</dl>"


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{''.join(parts)}</section>"


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _text(value: str) -> str:
    return html.escape(value)


def _n(value: float) -> str:
    return f"{value:.3g}"


def _numbers(values: np.ndarray) -> str:
    return ", ".join(_n(value) for value in values[:12]) + (", ..." if len(values) > 12 else "")
