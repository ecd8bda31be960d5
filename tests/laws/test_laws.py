"""Every law on every procedure; where a procedure says that it breaks a law, that it does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_cases_name_laws_that_exist() -> None:
    assert all(case.breaks <= set(LAWS) for case in CASES)
