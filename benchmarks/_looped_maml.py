"""MAML as it is mostly written: a Python loop over tasks and steps, ``autograd.grad``, parameters swapped in."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesmeta.types import Context


class LoopedMAML:
    """The yardstick: the same network, losses and optimiser, one task after another."""

    def __init__(self, network: nn.Module, loss: Any, *, steps: int, rate: float, lr: float = 1e-3) -> None:
        self.network, self.loss, self.steps, self.rate = network, loss, steps, rate
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)

    def update(self, support: Context, query: Context) -> Tensor:
        """One meta-update."""
        total = torch.zeros(())
        for task in range(support.batch):
            weights = dict(self.network.named_parameters())
            for _ in range(self.steps):
                loss = self.loss(functional_call(self.network, weights, (support.x[task],)), support.y[task])
                gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
                weights = {
                    name: weight - self.rate * gradient
                    for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
                }
            total = total + self.loss(functional_call(self.network, weights, (query.x[task],)), query.y[task])
        self.optimizer.zero_grad()
        (total / support.batch).backward()
        self.optimizer.step()
        return total.detach() / support.batch


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    """Of numbers, the mean over rows."""
    return (out - y).square().sum(-1).mean()


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Of one-hot classes, the mean over rows."""
    return -(out.log_softmax(-1) * y).sum(-1).mean()
