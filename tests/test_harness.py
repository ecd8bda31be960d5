"""What the other tests rely on: shapes are checked, warnings are errors, the checker leaves random streams alone."""

import random
import warnings

import pytest
import torch
from jaxtyping import TypeCheckError

from bayesmeta.inference.beliefs import Point
from bayesmeta.models.distributions import TanhNormal
from bayesmeta.types import Context, Spec


def test_wrong_shape_is_an_error_in_every_folder():
    with pytest.raises(TypeCheckError, match="mask"):
        Context(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="log_std"):
        TanhNormal(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeCheckError, match="Point"):
        Point(torch.zeros(2))


def test_warning_is_an_error():
    with pytest.raises(UserWarning, match="look"):
        warnings.warn("look", stacklevel=1)


def test_type_checker_draws_nothing_from_the_global_stream():
    before = random.getstate()
    Spec("three names", 1, 1, ("a", "b", "c"))  # one of which is looked at
    assert random.getstate() == before
