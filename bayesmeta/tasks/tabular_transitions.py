"""The transition function of a small MDP, whose belief is counting."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from bayesmeta.inference.dirichlet import ConjugateDirichlet
from bayesmeta.models.dirichlet import DirichletModel
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class TabularTransitions:
    """``tabular_transitions-v1``: where does action ``a`` lead from state ``s``?

    ``p(. | s, a) ~ Dirichlet(concentration, ..., concentration)`` over the ``states`` next states, independently for
    each pair. A datum is one transition from a pair chosen uniformly: ``x`` the one-hot code of the pair, number
    ``s * actions + a``, and ``y`` that of the next state. A task is its table, flattened pair by pair. In ``ood`` tasks
    transitions are nearly certain: a tenth of the concentration.
    """

    def __init__(self, *, states: int = 3, actions: int = 2, concentration: float = 1.0) -> None:
        if states < 2 or actions < 1:
            raise ValueError(f"TabularTransitions: expected states >= 2 and actions >= 1, got {states} and {actions}")
        pairs = states * actions
        names = tuple(f"p_{s}_{a}_{n}" for s in range(states) for a in range(actions) for n in range(states))
        self.spec = Spec("tabular_transitions-v1", pairs, states, names)
        self.model = DirichletModel(torch.full((pairs, states), concentration))
        self.exact = ConjugateDirichlet(self.model)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Tables of ``n`` tasks."""
        sharpness = 10.0 if is_ood(self.spec, split) else 1.0
        concentration = self.model.concentration[0].double().cpu().numpy() / sharpness
        # torch draws Dirichlet variables from its global generator only.
        seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
        draws = np.random.default_rng(seed).dirichlet(concentration, size=(n, self.spec.x_dim))
        return torch.as_tensor(draws, dtype=torch.float32, device=generator.device).flatten(1)

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` transitions of each task."""
        pairs, states = self.spec.x_dim, self.spec.y_dim
        pair = torch.randint(pairs, (len(params), shots), generator=generator, device=params.device)
        rows = params.unflatten(1, (pairs, states))
        reached = rows.gather(1, pair.unsqueeze(-1).expand(-1, -1, states)).cumsum(-1)
        uniform = torch.rand(*pair.shape, 1, generator=generator, device=params.device)
        # Times the row's total, which float32 may leave a little off 1.
        following = (uniform * reached[..., -1:] >= reached).sum(-1).clamp_max(states - 1)
        return Context.of(one_hot(pair, pairs).float(), one_hot(following, states).float())
