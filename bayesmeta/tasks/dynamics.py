"""Learning how a body moves: regression on the transitions of a control family whose dynamics vary."""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.guards import check_finite
from bayesmeta.tasks.checks import checked_params
from bayesmeta.tasks.hopper_params import HopperParams
from bayesmeta.types import Context, ControlFamily, Spec

STATISTICS_TASKS = 32


class Dynamics:
    """``dynamics-v1``: what does an action change? A task is one body of ``control``, a datum one transition.

    ``x = (s, a)`` and ``y = s' - s``, each number shifted and scaled by fixed ``statistics``, so that both have mean 0
    and variance 1, roughly, over training tasks: those of ``steps`` transitions in each of 32 training tasks that a
    fixed seed draws. ``change`` undoes that.

    Actions are uniform on [-1, 1], independent from step to step. A body goes through one episode after another, each
    from the family's reset on, until it has made ``steps`` transitions; ``shots`` of these are drawn without
    replacement, in random order, so that any rows serve as support or query as well as any others. ``params`` and
    splits are those of ``control``, by default :class:`~bayesmeta.tasks.hopper_params.HopperParams`. There is no
    ``model`` and no ``exact``: a simulator has no density. A task costs ``steps`` steps of simulation at every call.

    The form, not the numbers, is that of Nagabandi, Clavera et al. 2019, whose models predict normalised changes of
    state; their bodies break while they move, these stay what they are. Raises ValueError for a family whose dynamics
    are the same in all tasks.
    """

    def __init__(self, control: ControlFamily | None = None, *, steps: int = 100) -> None:
        self.control = HopperParams() if control is None else control
        inner = self.control.spec
        if not inner.dynamics_vary or steps < 2:
            raise ValueError(
                f"Dynamics: expected steps >= 2 and a control family whose dynamics vary, such as HopperParams, got "
                f"steps = {steps} and {inner.name}"
            )
        self.steps = steps
        self.spec = Spec("dynamics-v1", inner.obs_dim + inner.action_dim, inner.obs_dim, inner.param_names)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Bodies of ``n`` tasks. Raises ValueError for a split that ``control`` does not have."""
        try:
            return self.control.sample(n, split, _on_cpu(generator)).to(generator.device)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(str(error).replace(self.control.spec.name, self.spec.name)) from error

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` transitions of each task, normalised. Raises ValueError for more of them than ``steps``."""
        if shots > self.steps:
            raise ValueError(
                f"{self.spec.name}: expected at most steps = {self.steps} shots, got {shots}; make steps larger"
            )
        own = _on_cpu(generator)
        x, y = self._transitions(checked_params(params, self.spec).detach().cpu(), own)
        rows = torch.rand(len(x), self.steps, generator=own).topk(shots).indices.unsqueeze(-1)
        x_mean, x_std, y_mean, y_std = self.statistics
        x = (x.take_along_dim(rows, 1) - x_mean) / x_std
        y = (y.take_along_dim(rows, 1) - y_mean) / y_std
        return Context.of(x.to(params.device), y.to(params.device))

    def change(self, y: Float[Tensor, "*S Y"]) -> Float[Tensor, "*S Y"]:
        """The change of state ``s' - s`` in the body's units that a target or a prediction stands for."""
        _, _, mean, std = self.statistics
        return mean.to(y.device) + std.to(y.device) * y

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and standard deviation of ``s, a``, then of ``s' - s``, in the body's units: ``[X], [X], [Y], [Y]``."""
        generator = torch.Generator().manual_seed(0)
        x, y = self._transitions(self.control.sample(STATISTICS_TASKS, "train", generator), generator)
        # A number that never changes, as a velocity that is always clipped might, is left as it is.
        x_std, y_std = (torch.where(v.std((0, 1)) > 0, v.std((0, 1)), 1.0) for v in (x, y))
        return x.mean((0, 1)), x_std, y.mean((0, 1)), y_std

    def _transitions(self, params: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The first ``steps`` transitions of each task: ``(s, a) [B, steps, X]`` and ``s' - s [B, steps, Y]``."""
        inner, batch = self.control.spec, len(params)
        x, y = torch.empty(batch, self.steps, self.spec.x_dim), torch.empty(batch, self.steps, self.spec.y_dim)
        made = torch.zeros(batch, dtype=torch.long)
        env = self.control.env(params)
        seed: int | None = int(torch.randint(1 << 31, (), generator=generator))
        while bool((made < self.steps).any()):
            obs, _ = env.reset(seed=seed)
            seed = None  # the next episode goes on from here
            alive = torch.ones(batch, dtype=torch.bool)
            for _ in range(inner.horizon):
                action = 2.0 * torch.rand(batch, inner.action_dim, generator=generator) - 1.0
                next_obs, _, terminated, truncated, _ = env.step(action)
                row = (alive & (made < self.steps)).nonzero().squeeze(-1)
                x[row, made[row]] = torch.cat([obs, action], -1)[row]
                y[row, made[row]] = (next_obs - obs)[row]
                made[row] += 1
                alive &= ~(terminated | truncated)
                obs = next_obs
                if not bool((alive & (made < self.steps)).any()):
                    break
        env.close()
        check_finite(state_and_action=x, change=y)
        return x, y


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """A generator for the simulator's side, which is always the CPU, that the caller's decides."""
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
