"""One HTML file that needs nothing else: figures, tables and what they mean."""

import base64
from pathlib import Path

import xarray as xr

from bayesmeta.diagnostics import exploration_panels, panels, tables
from bayesmeta.diagnostics.latent import is_functional, latent_names
from bayesmeta.diagnostics.panels import Panel
from bayesmeta.diagnostics.plotting import rendered
from bayesmeta.diagnostics.results import attribute
from bayesmeta.diagnostics.tables import text
from bayesmeta.diagnostics.verdict import verdicts
from bayesmeta.diagnostics.words import CSS, GLOSSARY
from bayesmeta.folder import RunFolder, write_atomically
from bayesmeta.types import TaskFamily


def write_report(
    tree: xr.DataTree, path: Path | str, *, family: TaskFamily | None = None, run: RunFolder | None = None
) -> Path:
    """Write the report of some results, whole or not at all.

    ``family`` adds the exact belief to paths in the plane, ``run`` the learning curve.
    """
    path = Path(path).absolute()
    write_atomically(path, report(tree, family, run))
    return path


def report(tree: xr.DataTree, family: TaskFamily | None = None, run: RunFolder | None = None) -> str:
    """The page, in ASCII."""
    title = f"{attribute(tree, 'algorithm', attribute(tree, 'inference'))} on {attribute(tree, 'family')}"
    body = [
        f'<h1>{text(title)}</h1><p class="lead">{text(tables.summary(tree))}</p>',
        _section("What was found", tables.verdict_list(verdicts(tree))),
    ]
    if "trajectory" in tree.children:
        words = "Every task is new to the agent. It acts, infers the task from what it sees, and acts again."
        if explored := "exploration" in tree.children:
            words = "The agent is not told the problem. It explores, which pays nothing, infers the problem from what "
            words += "it sees, and then does as it is asked."
        body.append(_section("Behaviour", words, *panels.behaviour(tree, family, run), tables.returns_table(tree)))
        if explored:
            words = "What the steps of exploration told of the problem, and what the belief made of it: the exact "
            words += "posterior is known at every step."
            table = tables.exploration_table(tree)
            body.append(_section("Exploration", words, *exploration_panels.exploration(tree, family), table))
    elif curve := panels.learning(tree, run):
        body.append(_section("Training", "How well unseen data of unseen tasks were predicted on the way.", *curve))
    right = panels.correctness(tree)
    if right:
        words = "Calibration: do truths fall in the belief as often as it says? Distance: how far is it from exact?"
        body.append(_section("Is the belief right?", words, *right))
    words = "How fast the belief finds out which task this is: every point is the belief after so many data of a trial."
    body.append(
        _section("What is known after how much data", words, *panels.knowledge(tree), tables.context_table(tree))
    )
    words = "The latent that is inferred: what its dimensions hold, and how the belief about it moves."
    if is_functional(tree):
        words = "What is inferred is a function. Looked at are its values at a few inputs: z0, z1, ... are "
        words += f"{', '.join(latent_names(tree))}."
    body.append(_section("The latent", words, *panels.latent(tree)))
    if implied := attribute(tree, "implied_prior"):
        words = "Few gradient steps from a learned start favour weights near that start, as a prior does: which one?"
        body.append(_section("The prior that gradient descent stands for", words, tables.preformatted(implied)))
    body.append(_section("What the words mean", tables.glossary(GLOSSARY)))
    words = "The numbers of every figure are in results.nc beside this file; ArviZ and xarray open it."
    body.append(_section("How this was made", words, tables.settings(tree)))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}: bayesmeta</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _section(heading: str, *parts: str | Panel) -> str:
    """A heading, words (a part that is not markup), figures together, and tables."""
    drawn = "".join(_figure(part) for part in parts if isinstance(part, Panel))
    words = "".join(f"<p>{text(p)}</p>" for p in parts if isinstance(p, str) and not p.startswith("<"))
    markup = "".join(part for part in parts if isinstance(part, str) and part.startswith("<"))
    shown = f'<div class="figures">{drawn}</div>' if drawn else ""
    return f"<section><h2>{text(heading)}</h2>{words}{shown}{markup}</section>"


def _figure(panel: Panel) -> str:
    """The figure as an element, its image inside."""
    image = base64.b64encode(rendered(panel.draw)).decode()
    kind = ' class="wide"' if panel.wide else ""
    return (
        f'<figure{kind}><img src="data:image/png;base64,{image}" alt="{text(panel.alternative)}">'
        f"<figcaption>{text(panel.caption)}</figcaption></figure>"
    )
