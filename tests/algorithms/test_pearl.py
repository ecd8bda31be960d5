"""PEARL: what trains what, in which units, and that a run can be stopped anywhere."""

import copy
import inspect
import math
from importlib.resources import files

import pytest
import torch
from omegaconf import OmegaConf
from pyro.infer import RenyiELBO, Trace_ELBO
from torch.distributions import kl_divergence

from bayesmeta.algorithms.pearl import PEARL
from bayesmeta.evaluate import evaluate
from bayesmeta.guards import NonFiniteError
from bayesmeta.rl.sac import policy_loss, soft_target, td_error
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.types import Context, Spec, map_tensors

SMALL = dict(
    latent_dim=3,
    widths=(16, 16),
    encoder_widths=(16,),
    train_tasks=6,
    meta_batch=4,
    rl_batch=8,
    context_batch=8,
    initial_episodes=2,
    collect_tasks=6,
    updates=3,
)
FORMS = [
    pytest.param(dict(covariance="diagonal", prior_factor=False), id="published"),
    pytest.param(dict(covariance="diagonal"), id="prior-factor"),
    pytest.param(dict(covariance="full"), id="full"),
]


def agent(**changes) -> PEARL:
    torch.manual_seed(0)
    family = PointGoal(horizon=5)
    algorithm = PEARL(family.spec, **{**SMALL, **changes})
    algorithm.setup(family, seed=0)
    return algorithm


def meta_batch(algorithm: PEARL):
    tasks = torch.arange(4)
    return algorithm.replay.sample(tasks, 8, algorithm._generator), algorithm._context(tasks)


@pytest.fixture(params=FORMS)
def trained(request) -> PEARL:
    algorithm = agent(**request.param)
    algorithm.step()
    return algorithm


def test_the_objective_is_td_error_plus_weighted_kl_per_task(trained):
    batch, context = meta_batch(trained)
    belief = trained.inference.update(trained.inference.init(4), context)
    torch.manual_seed(1)
    loss = trained._objective(belief.posterior, batch)

    torch.manual_seed(1)
    z = belief.posterior.rsample()
    y = soft_target(
        trained.policy,
        trained.target,
        batch,
        z,
        temperature=trained.log_temperature.exp(),
        discount=trained.discount,
        reward_scale=trained.reward_scale,
    )
    kl = kl_divergence(belief.posterior, trained._prior(4))
    expected = (td_error(trained.critics, batch, z, y) + trained.kl_weight * kl).sum()
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("elbo", [Trace_ELBO(num_particles=2), RenyiELBO(alpha=0.5, num_particles=2)])
def test_other_elbos_of_pyro_are_accepted(trained, elbo):
    batch, context = meta_batch(trained)
    belief = trained.inference.update(trained.inference.init(4), context)
    trained._elbo = elbo
    loss = trained._objective(belief.posterior, batch)
    gradients = torch.autograd.grad(loss, list(trained.inference.parameters()))
    assert loss.isfinite()
    assert any(bool(g.abs().max() > 0) for g in gradients)


def test_the_encoder_learns_from_critic_and_kl_and_never_from_the_policy(trained):
    batch, context = meta_batch(trained)
    encoder = list(trained.inference.parameters())
    belief = trained.inference.update(trained.inference.init(4), context)
    z = belief.posterior.rsample()
    temperature = torch.tensor(0.1)
    loss, _ = policy_loss(trained.policy, trained.critics, batch.obs, z, temperature=temperature)
    from_policy = torch.autograd.grad(loss, encoder, allow_unused=True, retain_graph=True)
    assert all(g is None for g in from_policy)

    y = torch.zeros_like(batch.reward)
    from_critic = torch.autograd.grad(td_error(trained.critics, batch, z, y).sum(), encoder, retain_graph=True)
    from_kl = torch.autograd.grad(kl_divergence(belief.posterior, trained._prior(4)).sum(), encoder)
    assert max(float(g.abs().max()) for g in from_critic) > 0
    assert max(float(g.abs().max()) for g in from_kl) > 0


def test_the_target_passes_no_gradient_to_the_latent():
    algorithm = agent()
    algorithm.step()
    batch, _ = meta_batch(algorithm)
    z = torch.zeros(4, 3, requires_grad=True)
    y = soft_target(
        algorithm.policy, algorithm.target, batch, z, temperature=torch.tensor(0.1), discount=0.9, reward_scale=1.0
    )
    assert not y.requires_grad


def test_the_size_of_the_meta_batch_does_not_change_the_weight_of_the_kl(trained):
    """Doubling the meta-batch by repeating it leaves the encoder's KL gradient as it was: a mean, not a sum."""
    _, context = meta_batch(trained)
    encoder = list(trained.inference.parameters())

    def gradient(data: Context) -> torch.Tensor:
        belief = trained.inference.update(trained.inference.init(data.batch), data)
        batch, _ = meta_batch(trained)
        batch = map_tensors(batch, lambda t: torch.zeros_like(t).repeat(data.batch // 4, *[1] * (t.dim() - 1)))
        with torch.no_grad():
            for parameter in (*trained.critics.parameters(), *trained.target.parameters()):
                parameter.zero_()  # the factor vanishes up to a constant: what is left is the KL
        loss = trained._objective(belief.posterior, batch) / data.batch
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder)])

    twice = map_tensors(context, lambda t: torch.cat([t, t]))
    torch.testing.assert_close(gradient(context), gradient(twice), rtol=1e-4, atol=1e-7)


def test_a_step_collects_what_it_says(trained):
    assert trained.env_steps == 6 * 5 * (2 + 2)  # six tasks, horizon 5, 2 initial and 1 + 1 episodes
    assert trained.replay.size.tolist() == [20] * 6
    assert trained.replay.recent.tolist() == [[10, 15, 20]] * 6


def test_the_weight_of_the_kl_grows_over_the_warm_up():
    """3 updates a step: after 1, 2 and 3 steps of a warm-up of 6 updates its last update had 1/2, 1 and 1 of it."""
    algorithm = agent(kl_weight=0.4, kl_warmup=6)
    weights = []
    for _ in range(3):
        algorithm.step()
        weights.append(algorithm._model.kl_weight)
    assert weights == pytest.approx([0.2, 0.4, 0.4])
    assert agent(kl_weight=0.4)._model.kl_weight == 0.4


@pytest.mark.parametrize("contexts", ["history", "visit", "all"])
def test_contexts_are_of_the_data_they_are_said_to_be_of(contexts):
    """Six tasks of four episodes of five steps; the last two episodes are the latest visit."""
    algorithm = agent(contexts=contexts, context_batch=40)
    algorithm.step()
    algorithm.replay.rows[:, :20, 0] = torch.arange(20.0)
    sizes, tags = set(), set()
    for _ in range(30):
        context = algorithm._context(torch.arange(6))
        sizes |= set(context.mask.sum(1).tolist())
        tags |= {int(tag) for tag in context.x[..., 0][context.mask].tolist()}
    assert tags == {"history": set(range(10, 20)), "visit": set(range(10, 20)), "all": set(range(20))}[contexts]
    assert sizes == ({5, 10} if contexts == "history" else {40})


def test_held_actions_need_as_many_latents_as_actions():
    held = agent(initial_actions="held")
    held.step()
    moves = held.replay.rows[:, :10, 2:4].reshape(6, 2, 5, 2)  # actions of the initial episodes
    assert (moves.std(2) < 0.3).all() and moves.mean(2).norm(dim=-1).min() > 0.6
    with pytest.raises(ValueError, match="latent_dim must be at least 2, the actions of point_goal-v1; got 1"):
        agent(initial_actions="held", latent_dim=1)


def test_extra_episodes_train_the_critics_but_are_not_context():
    algorithm = agent(extra_episodes=1)
    algorithm.step()
    assert algorithm.replay.size.tolist() == [25] * 6
    assert algorithm.replay.recent.tolist() == [[10, 15, 20]] * 6


def test_evaluation_uses_fresh_data_a_sampled_z_and_the_mode_of_the_policy(trained):
    family = PointGoal(horizon=5)
    params = family.sample(7, "test", torch.Generator().manual_seed(3))
    before = torch.get_rng_state()
    size = trained.replay.size.clone()
    rollout = evaluate(trained, family, params, episodes=3, seed=5)
    again = evaluate(trained, family, params, episodes=3, seed=5)
    assert rollout.returns.shape == (7, 3)
    assert torch.equal(rollout.returns, again.returns)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(size, trained.replay.size)
    assert not torch.equal(rollout.latents[:, 0], rollout.latents[:, 1])
    first = rollout.episodes[0]
    with torch.no_grad():
        mode = trained.policy(first.obs[:, 0], rollout.latents[:, 0]).mode
    torch.testing.assert_close(first.action[:, 0], mode)


def test_continuing_from_a_state_is_bit_exact(trained):
    family = PointGoal(horizon=5)
    state = copy.deepcopy(trained.state_dict())
    rng = torch.get_rng_state()
    there = trained.step()
    other = PEARL(family.spec, **{**SMALL, **_form(trained)})
    other.setup(family, seed=99)
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    assert other.step() == there
    for (name, ours), (_, theirs) in zip(trained._named_parameters(), other._named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def _form(algorithm: PEARL) -> dict:
    inference = algorithm.inference
    return dict(covariance="diagonal" if inference.diagonal else "full", prior_factor=inference.prior_factor)


def test_a_nan_in_the_data_stops_the_same_update_and_is_named():
    algorithm = agent()
    algorithm.step()
    batch, context = meta_batch(algorithm)
    batch.training_reward[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="td_error"):
        algorithm.update(batch, context)


def test_bf16_update_is_close_to_fp32_and_keeps_fp32_parameters():
    exact, rough = agent(), agent(precision="bf16")
    rough.load_state_dict((exact.step(), exact.state_dict())[1])
    batch, context = meta_batch(exact)
    torch.manual_seed(2)
    ours = exact.update(batch, context)
    torch.manual_seed(2)
    theirs = rough.update(batch, context)
    torch.testing.assert_close(ours["critic_loss"], theirs["critic_loss"], rtol=0.1, atol=0.05)
    assert all(p.dtype == torch.float32 for _, p in rough._named_parameters())


def test_next_observations_are_context_where_dynamics_vary():
    spec = Spec.control("toy-v1", obs_dim=3, action_dim=1, horizon=4, param_names=("mass",), dynamics_vary=True)
    assert PEARL(spec, **SMALL).inference.y_dim == 1 + 3


def test_supervised_families_are_refused():
    with pytest.raises(ValueError, match="PEARL needs a control family, got 'line-v1'"):
        PEARL(Spec("line-v1", 1, 1, ("slope",)))


def test_meta_batches_larger_than_the_task_set_are_refused():
    with pytest.raises(ValueError, match=r"meta_batch \(7\).*train_tasks \(6\)"):
        agent(meta_batch=7)


def test_the_configuration_states_the_defaults_of_the_class():
    stated = OmegaConf.create(files("bayesmeta.configs.algorithm").joinpath("pearl.yaml").read_text())
    defaults = inspect.signature(PEARL).parameters
    for name in set(defaults) - {"spec", "device", "elbo"}:
        default = defaults[name].default
        assert (list(default) if isinstance(default, tuple) else default) == stated[name], name


@pytest.mark.gpu
def test_a_step_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    algorithm = agent(device="cuda")
    assert math.isfinite(algorithm.step()["critic_loss"])
    assert algorithm.replay.rows.device.type == "cuda"
