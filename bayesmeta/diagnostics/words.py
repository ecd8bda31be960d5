"""What a verdict is, the report's style sheet, and what its words mean."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "note", "invalid"]


@dataclass(frozen=True)
class Verdict:
    """One question, its answer in numbers, what that means and, if it failed, what to try.

    A ``note`` has no threshold: it neither passes nor fails. ``invalid`` is a comparison with something that turned out
    to be no reference.
    """

    question: str
    outcome: Outcome
    found: str
    meaning: str


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-bottom: .25rem; border-bottom: 2px solid #e4e7eb; }
p { margin: .4rem 0 .8rem; max-width: 48rem; }
.lead { color: #52606d; }
.card, figure { background: #fff; border: 1px solid #e4e7eb; border-radius: .5rem; padding: .9rem; }
.card { margin: .8rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { flex: 1 1 24rem; min-width: min(100%, 18rem); margin: 0; }
figure.wide { flex-basis: 100%; overflow-x: auto; }
figure img { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0 auto; }
figure.wide img { min-width: 38rem; max-width: 64rem; }
figcaption { font-size: .88rem; color: #52606d; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .35rem 1.6rem .35rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
th { font-weight: 600; color: #52606d; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .55rem 0; border-top: 1px solid #e4e7eb; }
.verdict > :first-child { flex: 0 0 4.6rem; }
.verdict > :nth-child(2) { flex: 1 1 22rem; }
.verdict > :last-child { flex: 1 1 17rem; color: #52606d; }
.badge { display: inline-block; border-radius: 1rem; padding: .02rem .6rem; font-size: .8rem; font-weight: 600; }
.passed { background: #d3f0e4; color: #0b5d43; }
.failed { background: #fbdcd5; color: #8f2c0b; }
.note, .invalid { background: #e4e7eb; color: #3e4c59; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 52rem; }
pre { overflow-x: auto; font-size: .82rem; background: #f5f7fa; padding: .75rem; border-radius: .35rem; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { background: #fff; } figure, .card { break-inside: avoid; } }
""".strip()

GLOSSARY = {
    "Return": "The sum of an episode's rewards, as the task gives them, without shaping or bonus.",
    "Adaptation episode": "The agent meets an unseen task and acts for several episodes, inferring the task from "
    "all it has seen. Episode 1 is played on the prior, before anything is known.",
    "95 % interval": "Where the mean would fall in 95 of 100 repetitions with other tasks, by resampling the tasks "
    "(bootstrap). It says nothing of other training seeds: this is one run.",
    "Oracle": "An agent that is told the task. No agent that must infer it can do better on average.",
    "Contraction": "One minus posterior variance over prior variance: 0 means nothing was learned of a dimension, 1 "
    "that it is known. Below 0 the data made the belief wider.",
    "KL from the prior": "How much a belief has learned, in nats (1 nat = 1.44 bits). Per dimension it is that of the "
    "marginal; all dimensions together can hold more or less than their sum where they are correlated.",
    "Active dimension": "A latent dimension that data move: on average more than 0.01 nat away from the prior. The "
    "others are spare capacity, which is no fault.",
    "Decoded": "The latent has no true value, but the task has. Its true parameters are predicted from the posterior "
    "mean by ridge regression (linear or quadratic), for every task by a regression fitted on other tasks.",
    "RMSE": "Root mean squared distance between the predicted and the true parameters, in their own units.",
    "Exact posterior": "Bayes' rule with the family's true model on the same data. Its mean has the lowest RMSE there "
    "is; for a simulator without noise it is the limit up to the resolution of the grid.",
    "Calibrated": "True values fall where the belief says, as often as it says. Their ranks among draws of the belief "
    "(PIT) are then uniform on [0, 1]; gates fail for 1 calibrated belief in 1,000.",
    "Log likelihood, log q, tarp": "What is ranked beside the latent's coordinates: how probable the data are, how "
    "dense the belief is, and how far it is from a point chosen by the data. Each sees what coordinates alone cannot.",
    "Misfit": "Also ranked: how far the function's values are from the data nearest to them. A belief that ignores "
    "its data shows here and nowhere else.",
    "Function values": "Weights of a network have no true value, but what it computes has. What is looked at are then "
    "the values of the task's function, without noise, at a few fixed inputs, the probes; for classes their "
    "probabilities.",
    "Point belief": "A single best guess, as gradient descent gives: without a width, so that it cannot be calibrated. "
    "Its predictions can, by the noise that the model has learned.",
    "Implied prior": "The Gaussian prior under which so many gradient steps lead to the posterior's mode: exact for a "
    "quadratic loss, near the start elsewhere.",
    "k-hat": "How heavy the tail of the importance weights from the belief to the true posterior is: below about 0.6 "
    "they can correct it, above 1 they have no mean.",
    "Prior, posterior": "What is believed of the latent before any data and after. A posterior far from its prior, and "
    "different for different tasks, is what adaptation looks like.",
}
