"""Every law on every procedure; where a procedure says that it breaks a law, that it does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context, to
from tests.laws.cases import EXACT, LEARNED, Case
from tests.laws.laws import LAWS, Setting

CASES = EXACT + LEARNED


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_law(case: Case, law: str) -> None:
    inference = case.double()

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)))
    def check(seed: int, sizes: tuple[int, int]) -> None:
        setting = Setting(case.family, inference, seed, sizes)
        if law in case.breaks:
            with pytest.raises(AssertionError):
                LAWS[law](setting)
        else:
            LAWS[law](setting)

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_on_a_gpu(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    data = case.family.context(case.family.sample(3, "train", generator), 4, generator)
    here, there = case.double().float(), case.double().float().to("cuda")
    q = here.update(here.init(3), data).posterior
    p = there.update(there.init(3), to(data, "cuda")).posterior
    assert p.mean.is_cuda
    torch.testing.assert_close(p.mean.cpu(), q.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p.variance.cpu(), q.variance, rtol=1e-3, atol=1e-5)


def test_cases_name_laws_that_exist() -> None:
    assert all(case.breaks <= set(LAWS) for case in CASES)


class Faulty:
    """The exact posterior of the normal-normal model with one fault, which the law of that name must find."""

    def __init__(self, fault: str) -> None:
        self.exact = NormalNormal().exact.double()
        self.fault = fault
        self.calls = 0

    def init(self, batch: int) -> FullGaussian:
        return self.exact.init(batch)

    def update(self, belief: FullGaussian, data: Context) -> FullGaussian:
        x, y, mask = data.x, data.y, data.mask
        if self.fault == "filtering":
            belief = self.init(data.batch)
        if self.fault == "permutation":
            y = y * torch.linspace(0.5, 1.0, data.size).unsqueeze(-1)
        if self.fault == "mask":
            x, y, mask = x.nan_to_num(1.0), y.nan_to_num(0.0, posinf=3.0), torch.ones_like(mask)
        if self.fault == "contraction" and data.size:  # a mean cannot see how many data there are
            x, y, mask = x.mean(1, keepdim=True), y.mean(1, keepdim=True), mask[:, :1]
        after = self.exact.update(belief, Context(x, y, mask))
        if self.fault == "prior":
            after = FullGaussian(after.information + 0.1, after.precision)
        if self.fault == "bayes" and mask.any() and torch.equal(belief.precision, self.init(data.batch).precision):
            after = FullGaussian(after.information - belief.information, after.precision - belief.precision)
        if self.fault == "purity":
            self.calls += 1
            after = FullGaussian(after.information + self.calls, after.precision)
        return after


@pytest.mark.parametrize("law", LAWS)
def test_a_faulty_procedure_is_found(law: str) -> None:
    LAWS[law](Setting(NormalNormal(), Faulty("none"), seed=0, sizes=(3, 2)))
    with pytest.raises(AssertionError):
        LAWS[law](Setting(NormalNormal(), Faulty(law), seed=0, sizes=(3, 2)))
