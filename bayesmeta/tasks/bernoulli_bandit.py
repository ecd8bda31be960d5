"""The Bernoulli bandit, whose belief is counting."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from bayesmeta.inference.conjugate import ConjugateBeta
from bayesmeta.models.beta_bernoulli import BetaBernoulliModel
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class BernoulliBandit:
    """``bernoulli_bandit-v1``: arm ``a`` pays 1 with probability ``z_a ~ Beta(alpha, beta)``, else 0.

    A datum is one pull of an arm chosen uniformly: ``x`` its one-hot code, ``y`` the reward. ``alpha = beta = 1``, the
    default, is the bandit of RL^2 (Duan et al. 2016). ``ood`` arms pay rarely: ``z_a ~ Beta(alpha, 5 beta)``.
    """

    def __init__(self, *, arms: int = 5, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.spec = Spec("bernoulli_bandit-v1", arms, 1, tuple(f"arm_{a}" for a in range(arms)))
        self.model = BetaBernoulliModel(torch.full((arms,), alpha), torch.full((arms,), beta))
        self.exact = ConjugateBeta(self.model)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n A"]:
        """Success probabilities of the arms of ``n`` tasks."""
        rarity = 5.0 if is_ood(self.spec, split) else 1.0
        alpha, beta = self.model.alpha.cpu().numpy(), rarity * self.model.beta.cpu().numpy()
        # torch draws Beta variables from its global generator only.
        seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
        draws = np.random.default_rng(seed).beta(alpha, beta, size=(n, self.model.arms))
        return torch.as_tensor(draws, dtype=torch.float32, device=generator.device)

    def context(self, params: Float[Tensor, "B A"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` pulls of each task."""
        shape = (len(params), shots)
        arm = torch.randint(self.model.arms, shape, generator=generator, device=params.device)
        uniform = torch.rand(shape, generator=generator, device=params.device)
        reward = (uniform < params.gather(1, arm)).float().unsqueeze(-1)
        return Context.of(one_hot(arm, self.model.arms).float(), reward)
