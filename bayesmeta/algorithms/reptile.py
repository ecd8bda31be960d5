"""Reptile: towards where tasks' own training leads (Nichol, Achiam and Schulman 2018).

Generative reading: a task is the weights ``phi`` of a network. Each task's data pull them from ``theta`` to ``phi``,
and ``theta`` moves to the middle of where they went,

    theta <- theta + eps mean_tasks (phi - theta),

which is a gradient step of rate ``eps`` on ``mean_tasks |theta - phi|^2 / 2`` with ``phi`` held constant: the estimate
of the mean of a Gaussian population of weights from one point of each task, as if the points were the weights.

===========  ==========================================================================================
task model   network weights, implicit prior
inference    gradient descent, point
explorer     -
policy       z is the weights
trained by   distance to the adapted weights
===========  ==========================================================================================

In training a task's support and query are one set of data, of which every inner step sees a minibatch.

Differences from the published code, all deliberate: meta-test descends on all data of a task at once, for
``test_steps`` steps, so that the belief does not depend on their order; Adam's inner state starts anew for each task,
where the code carries the second moments from task to task; ``eps`` falls as ``lr / (1 + updates / lr_half)`` if at
all, where the code lets it fall linearly to 0; the noise of numbers is learned beside the weights, by the likelihood of
the queries after adaptation to the support alone, since the residuals of data that were fitted are too small.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, Adam, gradient, rates
from bayesmeta.inference.gradient import GradientDescent, Objective, Reduction, refuse_padding
from bayesmeta.inference.predictive import log_predictive, per_datum
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec, concat

_NOISE_RATE = 0.01  # the noise's rate as a share of eps, since eps may be 1, too much for a likelihood's gradient


class Reptile(Learner):
    """Reptile on a supervised family. See the module's docstring for the update.

    In training ``steps`` inner steps at ``rate``, each on at most ``inner_batch`` of the task's data (None: all), which
    are gone through in random order again and again; at meta-test ``test_steps`` steps on all data. ``inner`` is
    ``"sgd"`` or ``"adam"`` with ``beta1 = 0``. ``eps`` is ``episodes.lr``, for which ``episodes.optimizer`` must be
    ``"sgd"``; with ``"adam"`` the distance is a gradient like any other. The other arguments are those of
    :class:`~bayesmeta.algorithms.maml.MAML`.
    """

    inference: GradientDescent

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        steps: int = 5,
        inner: Literal["sgd", "adam"] = "sgd",
        rate: float = 0.02,
        inner_batch: int | None = 10,
        test_steps: int = 20,
        objective: Objective | None = None,
        reduction: Reduction = "mean",
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
    ) -> None:
        if steps < 1 or (inner_batch is not None and inner_batch < 1):
            raise ValueError(f"Reptile: expected steps >= 1 and inner_batch >= 1, got {steps} and {inner_batch}")
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        model = NetworkModel((network or Network()).build(spec, output.width), output)
        inference = GradientDescent(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=test_steps,
            optimizer=SGD(rates(rate)) if inner == "sgd" else Adam(rates(rate), betas=(0.0, 0.999)),
            objective=objective or ("nll" if spec.classes else "squared_error"),
            reduction=reduction,
        )
        self.steps, self.inner_batch, self.transductive = steps, inner_batch, transductive
        self.learns_noise = learn_noise and not spec.classes
        super().__init__(inference, episodes or Episodes(optimizer="sgd", lr=1.0), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """``mean |theta - phi|^2 / 2``, of which ``phi`` is held constant, and the part that trains the noise."""
        start = self.inference.model.prior(support.batch).mean
        distance = (start - self.trained(concat([support, query]))).square().sum(-1).mean() / 2
        return distance + _NOISE_RATE * self.noise_loss(support, query) if self.learns_noise else distance

    @torch.no_grad()
    def trained(self, data: Context) -> Float[Tensor, "B D"]:
        """The weights ``phi`` after a task's own training."""
        inference = self.inference
        refuse_padding("Reptile", inference.model, data)
        z = inference.model.prior(data.batch).mean
        state, size = inference.optimizer.start(z), min(self.inner_batch or data.size, data.size)
        for index, batch in enumerate(minibatches(data, self.steps, size)):
            found = gradient(partial(inference.loss, data=batch), z, differentiable=False)
            z, state = inference.optimizer.step(z, found, state, index)
        return z

    def noise_loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log predictive density of the queries after adaptation to the support, weights constant."""
        inference = self.inference
        with torch.no_grad():
            posterior = inference.update(inference.init(support.batch), support).posterior
        given = None if self.transductive else support
        return -per_datum(log_predictive(inference.model, posterior, query, support=given), query).mean()


def minibatches(data: Context, count: int, size: int) -> list[Context]:
    """``count`` minibatches of ``size`` rows of every task: its data in random order, again and again.

    ``size`` is at most their number. The orders are drawn from torch's global stream, for each task by itself.
    """
    passes = -(-count * size // data.size)
    orders = torch.rand(data.batch, passes, data.size, device=data.x.device).argsort(-1).flatten(1)
    task = torch.arange(data.batch, device=data.x.device).unsqueeze(1)
    found = []
    for rows in orders[:, : count * size].split(size, 1):
        found.append(Context(data.x[task, rows], data.y[task, rows], data.mask[task, rows]))
    return found
