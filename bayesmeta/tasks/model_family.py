"""A family from a task model alone: tasks are draws of its prior, data draws of its likelihood."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, Inference, Spec

Inputs = Callable[[int, int, torch.Generator], Tensor]


class ModelFamily:
    """The tasks of a user's :class:`TaskModel`: parameters are its latent, all splits are its prior.

    ``inputs(batch, shots, generator) -> x [batch, shots, X]`` are where data are taken; ``exact`` is a procedure that
    is known to be right for the model, if there is one. There is no ``ood`` split: asking for it raises ValueError.
    """

    def __init__(
        self, model: TaskModel, inputs: Inputs, *, name: str = "model", exact: Inference | None = None
    ) -> None:
        self.model, self.inputs, self.exact = model, inputs, exact
        generator = torch.Generator().manual_seed(0)
        data = self.context(self.sample(1, "train", generator), 1, generator)
        (latent_dim,) = model.prior(1).event_shape
        self.spec = Spec(name, data.x.shape[-1], data.y.shape[-1], tuple(f"z{d}" for d in range(latent_dim)))

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n D"]:
        """Latents of ``n`` tasks from the prior."""
        if split == "ood":
            raise ValueError("ModelFamily: a model's prior has no ood split; write a family with a `sample` of its own")
        with torch_seeded(_seed(generator)):
            return self.model.prior(n).sample()

    def context(self, params: Float[Tensor, "B D"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` data of each task."""
        x = self.inputs(len(params), shots, generator)
        blank = Context.of(x, x.new_zeros(len(params), shots, 0))
        with torch_seeded(_seed(generator)):
            return Context.of(x, self.model.likelihood(params.unsqueeze(-2), blank).sample())


def _seed(generator: torch.Generator) -> int:
    """A seed from the generator: distributions draw from torch's global state only."""
    return int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
