"""A NaN or an infinity stops a run in the iteration where it appears, by name, and spoils nothing that was saved."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bayesmeta import checkpoint
from bayesmeta.algorithms.maml import MAML
from bayesmeta.episodic import Episodes
from bayesmeta.evaluate import predictive_curve
from bayesmeta.guards import NonFiniteError, check_finite, check_gradients
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import Evaluating, Saving, train
from tests.runs import jobs
from tests.runs.jobs import lines, tiny, tiny_train

BAD = [float("nan"), float("inf"), -float("inf")]


@given(st.integers(0, 59), st.sampled_from(BAD), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_one_bad_value_anywhere_is_found(index, bad, dtype):
    good, tensor = torch.ones(7), torch.randn(3, 4, 5).to(dtype)
    check_finite(good=good, reward=tensor)
    tensor.view(-1)[index] = bad
    with pytest.raises(NonFiniteError, match=r"`reward` \(3, 4, 5\) holds 1 of 60 values that are not finite") as error:
        check_finite(good=good, reward=tensor)
    assert error.value.name == "reward" and set(error.value.tensors) == {"good", "reward"}
    assert torch.equal(error.value.tensors["reward"], tensor) or bad != bad


def test_cancelling_infinities_and_the_message():
    with pytest.raises(NonFiniteError, match=r"holds 2 of 3 .* the first at index \(1,\) \(inf\): lower the learning"):
        check_finite(x=torch.tensor([0.0, float("inf"), -float("inf")]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((1000,), 3e38),  # finite, though its sum is not
        torch.full((100,), 6e4, dtype=torch.float16),
        torch.tensor([3e38, -3e38, 3e38]),
        torch.zeros(0),
        torch.tensor(1),
        torch.ones(3, dtype=torch.bool),
    ],
)
def test_finite_tensors_pass(tensor):
    check_finite(x=tensor)
    check_finite()


def test_no_gradient_is_recorded_or_kept():
    x = torch.tensor([1.0, float("nan")], requires_grad=True)
    with pytest.raises(NonFiniteError) as error:
        check_finite(y=x * 2)
    assert not error.value.tensors["y"].requires_grad


def test_gradients_are_named():
    network = nn.Linear(2, 1)
    check_gradients(network.named_parameters())  # there are none yet
    network(torch.ones(2)).backward()
    check_gradients(network.named_parameters())
    network.bias.grad[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"`gradient of bias` \(1,\)"):
        check_gradients(network.named_parameters())


class Faulty:
    """An agent in which ``fault(inner)`` happens before step ``when``, and whose metrics may be tampered with."""

    def __init__(self, inner, fault=None, metric=None, when=3):
        self.inner, self.fault, self.metric, self.when = inner, fault, metric, when
        self.networks = nn.ModuleList([inner.policy, inner.critics])
        self.inference, self.setup = inner.inference, inner.setup

    @property
    def explorer(self):
        return self.inner.explorer

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "when": self.when}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.when = state["when"]

    def step(self):
        self.when -= 1
        if self.when == 0 and self.fault:
            self.fault(self.inner)
        metrics = self.inner.step()
        return metrics | ({"tampered": float("nan")} if self.when == 0 and self.metric else {})


class BrokenFamily:
    """A family whose environments return a NaN in the reward or the observation of their third step."""

    def __init__(self, family, where):
        self.family, self.where, self.spec, self.sample = family, where, family.spec, family.sample
        self.broken = False

    def env(self, params, device="cpu"):
        env = self.family.env(params, device)
        if self.broken:
            step, count = env.step, 0

            def broken(action):
                nonlocal count
                count += 1
                obs, reward, *rest = step(action)
                if count == 3:
                    (obs if self.where == "observation" else reward).view(-1)[0] = float("nan")
                return obs, reward, *rest

            env.step = broken
        return env


def poison(network, what):
    """A NaN in a parameter, or in the gradient that reaches it."""

    def fault(inner):
        parameter = next(getattr(inner, network).parameters())
        if what == "parameter":
            parameter.data.view(-1)[0] = float("nan")
        else:
            parameter.register_hook(lambda gradient: gradient * float("nan"))

    return fault


@pytest.mark.parametrize(
    "fault, metric, tensor",
    [
        (poison("critics", "parameter"), None, None),
        (poison("policy", "parameter"), None, None),
        (poison("inference", "parameter"), None, "inference.net.weights.0"),
        (poison("critics", "gradient"), None, None),
        (poison("policy", "gradient"), None, None),
        (poison("inference", "gradient"), None, None),
        (None, "tampered", "tampered"),
    ],
)
def test_nan_stops_in_its_iteration(tmp_path, fault, metric, tensor):
    algorithm, family = tiny()
    with pytest.raises(NonFiniteError, match="not finite") as error:
        tiny_train(tmp_path, 6, (Faulty(algorithm, fault, metric), family))
    assert "in iteration 3" in error.value.__notes__
    assert tensor is None or error.value.name == tensor
    check_nothing_is_spoilt(tmp_path, error.value)


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_nan_from_the_environment_stops_before_it_is_learned_from(tmp_path, where):
    algorithm, family = tiny()
    broken = BrokenFamily(family, where)
    faulty = Faulty(algorithm, lambda inner: setattr(broken, "broken", True))
    with pytest.raises(NonFiniteError, match=where) as error:
        tiny_train(tmp_path, 6, (faulty, broken))
    assert error.value.name == where
    assert bool(algorithm.replay.rows.isfinite().all())
    check_nothing_is_spoilt(tmp_path, error.value)


def test_nan_in_an_evaluation(tmp_path, monkeypatch):
    algorithm, family = tiny()
    broken = BrokenFamily(family, "reward")
    step = algorithm.step

    def then_break():
        metrics = step()
        broken.broken = algorithm.env_steps > 150
        return metrics

    monkeypatch.setattr(algorithm, "step", then_break)
    with pytest.raises(NonFiniteError, match="reward") as error:
        tiny_train(tmp_path, 6, (algorithm, broken))
    iteration = len(lines(tmp_path))
    assert iteration % 2 == 0 and f"in iteration {iteration}" in error.value.__notes__
    assert (tmp_path / f"nan-{iteration:09d}" / "error.json").exists()


def test_a_supervised_evaluation_survives_a_task_where_adaptation_diverges(tmp_path, monkeypatch):
    family = Sinusoid()
    evaluating = Evaluating(every=1, tasks=6, shots=(1, 2))

    def run(folder, lost):
        def curve(*arguments, **options):
            found = predictive_curve(*arguments, **options)
            found[lost, 0] = torch.nan
            return found

        monkeypatch.setattr("bayesmeta.train.predictive_curve", curve)
        algorithm = MAML(family.spec, episodes=Episodes(updates=1))
        return train(algorithm, family, iterations=1, run_dir=folder, evaluating=evaluating, progress="quiet")

    whole = run(tmp_path / "whole", []).returns
    with pytest.warns(UserWarning, match=r"predictions in 1 of 6 tasks are not finite and are left out"):
        rest = run(tmp_path / "rest", [2]).returns
    assert whole[0] != rest[0] and all(map(math.isfinite, rest))
    assert [line.get("diverged", 0) for line in lines(tmp_path / "rest", "evaluation/returns.jsonl")] == [1]
    assert "diverged" not in lines(tmp_path / "whole", "evaluation/returns.jsonl")[0]
    with pytest.raises(NonFiniteError, match="evaluation_returns"):
        run(tmp_path / "none", slice(None))


def check_nothing_is_spoilt(run_dir, error):
    """Two good iterations are logged and saved; the bundle holds what failed and fails again."""
    assert [line["iteration"] for line in lines(run_dir)] == [1, 2]
    assert not (run_dir / "done").exists()
    for path in checkpoint.entries(run_dir / "checkpoints"):
        check_finite(**tensors_of(checkpoint.load(path).components["algorithm"]["inner"]))
    assert checkpoint.entries(run_dir / "checkpoints")[0].name == "iteration-000000002"

    bundle = run_dir / "nan-000000003"
    about = json.loads((bundle / "error.json").read_text())
    assert about["tensor"] == error.name and about["last_good"] == "iteration-000000002"
    assert about["message"] == str(error)
    stored = checkpoint.read_component(bundle / "tensors.safetensors")
    assert jobs.difference(stored, {key: value.cpu() for key, value in error.tensors.items()}) is None
    assert not bool(stored[error.name].isfinite().all())
    assert "rng" in checkpoint.read_component(bundle / "state.safetensors")


def tensors_of(state, name="state"):
    """Every floating-point tensor of a nested state."""
    if isinstance(state, torch.Tensor):
        return {name: state} if state.is_floating_point() else {}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {key: value for part, inner in parts for key, value in tensors_of(inner, f"{name}.{part}").items()}


def test_the_bundle_fails_again_in_the_same_iteration(tmp_path):
    def attempt(run_dir):
        algorithm, family = tiny()
        faulty = Faulty(algorithm, poison("critics", "parameter"))
        with pytest.raises(NonFiniteError) as error:
            tiny_train(run_dir, 6, (faulty, family))
        return error.value

    first = attempt(tmp_path)
    bundle = tmp_path / "nan-000000003"
    assert any(str(bundle) in note and "the checkpoint of iteration 2" in note for note in first.__notes__)
    again = attempt(bundle)
    assert "in iteration 3" in again.__notes__
    assert jobs.difference(first.tensors, again.tensors) is None
    assert len(checkpoint.entries(tmp_path / "checkpoints")) == 2  # the bundle's run did not touch the original's


def test_before_the_first_checkpoint_the_bundle_says_so(tmp_path):
    algorithm, family = tiny()
    faulty = Faulty(algorithm, metric="tampered", when=1)
    with pytest.raises(NonFiniteError) as error:
        tiny_train(tmp_path, 6, (faulty, family), saving=Saving(0, 0))
    assert json.loads((tmp_path / "nan-000000001" / "error.json").read_text())["last_good"] is None
    assert any("from the seed" in note for note in error.value.__notes__)
    assert not (tmp_path / "checkpoints").exists()


def test_a_bundle_that_cannot_be_written_does_not_hide_the_cause(tmp_path, monkeypatch):
    algorithm, family = tiny()
    monkeypatch.setattr(checkpoint, "write_component", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(NonFiniteError) as error:
        tiny_train(tmp_path, 6, (Faulty(algorithm, metric="tampered"), family))
    assert any("no bundle could be written" in note and "disk full" in note for note in error.value.__notes__)


def test_without_a_folder_the_error_is_the_same():
    algorithm, family = tiny()
    with pytest.raises(NonFiniteError, match="tampered"):
        tiny_train(None, 6, (Faulty(algorithm, metric="tampered"), family))
