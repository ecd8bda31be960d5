"""The nouns: frozen data and the protocols that every part of bayesmeta obeys.

One letter means one thing everywhere:

=======  ================================================================
``B``    tasks (the batch axis of everything)
``N``    data of one task, in no particular order
``T``    time steps of one task, in order
``S A``  observation and action dimensions
``X Y``  input and target dimensions of a datum
``D``    task latent
``Z``    what a policy is conditioned on
``M``    task parameters (the truth a family samples)
``K``    episodes
=======  ================================================================

In reinforcement learning the input of a datum is ``(s, a)`` and its target ``r`` (or ``(r, s')``), so the supervised
and the reinforcement problem share one inference type.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution

Split = Literal["train", "test", "ood"]
SPLITS: tuple[Split, ...] = ("train", "test", "ood")

Record = TypeVar("Record")


@dataclass(frozen=True)
class Context:
    """Data of ``B`` tasks: inputs, targets, and which rows are real.

    ``x [B, N, X]``, ``y [B, N, Y]``, ``mask [B, N]`` (True = a real datum). Padding is expressed only by ``mask``:
    the values under a False entry are never read.
    """

    x: Float[Tensor, "B N X"]
    y: Float[Tensor, "B N Y"]
    mask: Bool[Tensor, "B N"]

    @property
    def batch(self) -> int:
        """Number of tasks."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """Number of rows per task, padding included."""
        return self.x.shape[1]

    @staticmethod
    def of(x: Float[Tensor, "B N X"], y: Float[Tensor, "B N Y"]) -> "Context":
        """A context without padding."""
        return Context(x, y, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    @staticmethod
    def empty(batch: int, x_dim: int, y_dim: int, device: torch.device | str = "cpu") -> "Context":
        """No data at all, ``N = 0``."""
        return Context.of(torch.zeros(batch, 0, x_dim, device=device), torch.zeros(batch, 0, y_dim, device=device))

    def rows(self, start: int, stop: int) -> "Context":
        """The rows ``start:stop`` of every task."""
        return Context(self.x[:, start:stop], self.y[:, start:stop], self.mask[:, start:stop])


@dataclass(frozen=True)
class Transitions:
    """Experience of ``B`` tasks in time order.

    ``obs [B, T, S]``, ``action [B, T, A]`` in [-1, 1], ``reward [B, T]``, ``next_obs [B, T, S]``; ``terminated [B, T]``
    marks a true end of the MDP (no bootstrapping), ``boundary [B, T]`` the last step of an episode for any reason, and
    ``mask [B, T]`` the real steps. ``training_reward [B, T]`` is what a learner maximises: the reward, or a shaped one
    with an exploration bonus; inference and evaluation never see it.
    """

    obs: Float[Tensor, "B T S"]
    action: Float[Tensor, "B T A"]
    reward: Float[Tensor, "B T"]
    training_reward: Float[Tensor, "B T"]
    next_obs: Float[Tensor, "B T S"]
    terminated: Bool[Tensor, "B T"]
    boundary: Bool[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def context(self, *, next_obs: bool = False) -> Context:
        """The data an inference procedure sees: ``x = (s, a)``, ``y = r`` or, with ``next_obs``, ``y = (r, s')``.

        The terminal flag is never part of it.
        """
        reward = self.reward.unsqueeze(-1)
        y = torch.cat([reward, self.next_obs], -1) if next_obs else reward
        return Context(torch.cat([self.obs, self.action], -1), y, self.mask)

    def returns(self) -> Float[Tensor, "B"]:
        """Undiscounted sum of the real rewards of each task."""
        return self.reward.masked_fill(~self.mask, 0.0).sum(-1)


def map_tensors(record: Record, fn: Callable[[Tensor], Tensor]) -> Record:
    """A copy of a frozen record with ``fn`` applied to each of its tensor fields."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    new = {k: fn(v) for k, v in fields.items() if isinstance(v, Tensor)}
    return dataclasses.replace(record, **new)  # type: ignore[type-var]


def to(record: Record, device: torch.device | str) -> Record:
    """The record on another device."""
    return map_tensors(record, lambda t: t.to(device))


def concat(records: Sequence[Record], dim: int = 1) -> Record:
    """Records joined along ``dim`` (1 = more data of the same tasks, 0 = more tasks)."""
    first = records[0]
    names = [f.name for f in dataclasses.fields(first)]  # type: ignore[arg-type]
    joined = {n: torch.cat([getattr(r, n) for r in records], dim) for n in names}
    return type(first)(**joined)


@dataclass(frozen=True)
class Spec:
    """Sizes an algorithm needs to build its networks; nothing of the task itself.

    ``horizon`` is the number of control steps of one episode; it and ``obs_dim``/``action_dim`` are 0 for supervised
    families. ``dynamics_vary`` says that next observations carry information about the task. ``classes`` says that a
    target is the one-hot code of one of ``y_dim`` classes. ``x_shape`` is the shape of an input that is more than a
    vector, an image ``(channels, height, width)`` for instance, whose product is ``x_dim``: a datum holds it flat.

    Control may be discrete: ``actions`` is then the number of actions, and an action is the one-hot code of one of
    them, ``action_dim = actions``. ``obs_sizes`` and ``param_sizes`` are the numbers of values of each component of an
    observation and of the task parameters where those are integers ``0, ..., size - 1``. ``reward_free`` says that a
    trial may begin with episodes of exploration, ``reset(options={"explore": True})``, which pay nothing and give no
    instruction.
    """

    name: str
    x_dim: int
    y_dim: int
    param_names: tuple[str, ...]
    obs_dim: int = 0
    action_dim: int = 0
    horizon: int = 0
    dynamics_vary: bool = False
    classes: bool = False
    x_shape: tuple[int, ...] = ()
    actions: int = 0
    obs_sizes: tuple[int, ...] = ()
    param_sizes: tuple[int, ...] = ()
    reward_free: bool = False

    def __post_init__(self) -> None:
        if self.x_shape and math.prod(self.x_shape) != self.x_dim:
            raise ValueError(f"Spec: expected x_shape with {self.x_dim} numbers, as x_dim says, got {self.x_shape}")
        if self.actions and self.actions != self.action_dim:
            raise ValueError(
                f"Spec: expected action_dim = {self.actions}, since each of so many actions is a one-hot code, got "
                f"{self.action_dim}"
            )
        for name, sizes, dim in (
            ("obs_sizes", self.obs_sizes, self.obs_dim),
            ("param_sizes", self.param_sizes, self.param_dim),
        ):
            if sizes and (len(sizes) != dim or min(sizes) < 1):
                raise ValueError(f"Spec: expected {dim} numbers >= 1 as {name}, one for each component, got {sizes}")

    @property
    def param_dim(self) -> int:
        return len(self.param_names)

    @property
    def is_control(self) -> bool:
        return self.horizon > 0

    @staticmethod
    def control(
        name: str,
        *,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        param_names: tuple[str, ...],
        dynamics_vary: bool = False,
    ) -> "Spec":
        """The spec of a control family: a datum is ``(s, a) -> r`` or, where the dynamics vary, ``(r, s')``."""
        y_dim = 1 + (obs_dim if dynamics_vary else 0)
        return Spec(name, obs_dim + action_dim, y_dim, param_names, obs_dim, action_dim, horizon, dynamics_vary)

    @staticmethod
    def discrete(
        name: str,
        *,
        obs_sizes: tuple[int, ...],
        actions: int,
        horizon: int,
        params: dict[str, int],
        reward_free: bool = True,
    ) -> "Spec":
        """The spec of a control family of integers, whose dynamics vary: ``params`` are names and numbers of values."""
        width = len(obs_sizes)
        return Spec(
            name,
            width + actions,
            1 + width,
            tuple(params),
            width,
            actions,
            horizon,
            dynamics_vary=True,
            actions=actions,
            obs_sizes=obs_sizes,
            param_sizes=tuple(params.values()),
            reward_free=reward_free,
        )


@runtime_checkable
class Belief(Protocol):
    """What is believed about ``B`` tasks: frozen tensors with a distribution over the task latent."""

    @property
    def posterior(self) -> Distribution:
        """Batch ``[B]``, event ``[D]``."""
        ...


@runtime_checkable
class Inference(Protocol):
    """Data to belief. ``init`` is the prior, ``update`` is pure: neither stores anything about a task.

    Procedures that get them together also offer ``scan(belief, data)``, the beliefs at every prefix of the data as one
    belief of batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after its first ``n`` rows.
    """

    def init(self, batch: int) -> Any:
        """The prior belief of ``batch`` tasks."""
        ...

    def update(self, belief: Any, data: Context) -> Any:
        """The belief after also seeing ``data``."""
        ...


@runtime_checkable
class TaskFamily(Protocol):
    """A distribution over tasks with named splits."""

    @property
    def spec(self) -> Spec: ...

    def sample(self, n: int, split: Split, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Parameters of ``n`` tasks of a split. Uses no randomness but the generator's."""
        ...


@runtime_checkable
class SupervisedFamily(TaskFamily, Protocol):
    """A family whose tasks are regression problems."""

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task."""
        ...


@runtime_checkable
class TaskEnv(Protocol):
    """A ``gymnasium.vector.VectorEnv`` in which row ``b`` is task ``b``; tensors in, tensors out, no autoreset.

    Actions are in [-1, 1], or where ``Spec.actions`` is positive one-hot rows of that many, and observations then
    integers as floats, each below its ``Spec.obs_sizes``. ``reset`` returns ``obs [B, S], info``;
    ``step(action [B, A])`` returns ``obs [B, S], reward [B], terminated [B], truncated [B], info``. A finished row may
    be stepped on; its output is ignored. See :class:`bayesmeta.tasks.base.TaskVectorEnv`.
    """

    num_envs: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]: ...

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]: ...

    def close(self) -> None: ...


@runtime_checkable
class ControlFamily(TaskFamily, Protocol):
    """A family whose tasks are MDPs."""

    def env(self, params: Float[Tensor, "B M"], device: torch.device | str = "cpu") -> TaskEnv:
        """The tasks as one vector environment."""
        ...


@runtime_checkable
class RecurrentPolicy(Protocol):
    """A policy that remembers what it saw and did in an episode, besides being conditioned on a latent.

    It is pure: what it remembers is a value, given to it and returned.
    """

    def begin(self, batch: int) -> Any:
        """What is remembered at the start of an episode."""
        ...

    def act(
        self, obs: Float[Tensor, "B S"], previous: Float[Tensor, "B A"], z: Float[Tensor, "B Z"], memory: Any
    ) -> tuple[Distribution, Any]:
        """The law of the next action after also seeing ``obs``, and what is remembered from now on.

        ``previous`` is the action before it, 0 in all components at the start.
        """
        ...


@dataclass(frozen=True)
class Explorer:
    """How behaviour follows from a belief. Data, no subclasses.

    ``policy(obs, z)`` acts, or a :class:`RecurrentPolicy`; ``reads`` says what of the belief becomes ``z`` (a posterior
    draw, its mean, or mean and log standard deviation); ``redraw`` is the number of episodes between redraws of ``z``,
    counted from the end of the prior episodes (0 = every step); ``deterministic`` takes the policy's mode instead of a
    draw; ``window`` keeps only the last so many transitions for inference (None = all); the first ``prior_episodes``
    episodes of a trial draw ``z`` from the belief it began with whatever has been seen, and follow ``exploration`` if
    there is such a policy, without reward where the family has such episodes; ``bonus(belief_before, belief_after,
    transitions) -> [B, T]`` is added to an episode's training reward.
    """

    policy: Callable[..., Any] | RecurrentPolicy
    reads: Literal["sample", "mean", "moments"] = "sample"
    redraw: int = 1
    deterministic: bool = False
    window: int | None = None
    prior_episodes: int = 1
    bonus: Callable[..., Tensor] | None = None
    exploration: Callable[..., Any] | RecurrentPolicy | None = None

    def latent(self, belief: Belief) -> Float[Tensor, "B Z"]:
        """What the policy is conditioned on."""
        posterior = belief.posterior
        if self.reads == "sample":
            return posterior.sample()
        if self.reads == "mean":
            return posterior.mean
        return torch.cat([posterior.mean, posterior.stddev.log()], -1)


@runtime_checkable
class Algorithm(Protocol):
    """A learner: ``step`` gathers data from a family and updates; ``update`` is its gradient part."""

    inference: Any

    def setup(self, family: Any, seed: int) -> None:
        """Draw the training tasks and the first data. Called once, before the first ``step``."""
        ...

    def step(self) -> dict[str, float]:
        """One meta-iteration: collect, then update. Returns scalar metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, except the global torch RNG: tensors, numbers, strings,
        lists and dicts only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Agent(Algorithm, Protocol):
    """An algorithm that acts: it learns on a control family."""

    @property
    def explorer(self) -> Explorer:
        """The behaviour that is evaluated at meta-test time."""
        ...
