"""The page about an environment of one's own shows the example, and keeps its promise of 20 lines."""

import ast
import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "examples" / "own_environment.py").read_text()
PAGE = (ROOT / "docs" / "own_environment.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.partition("## The other way round")[0], re.DOTALL)


def test_page_is_the_example():
    """Every block of the page is in the example as it stands, in its order, and together they are all of it."""
    start = 0
    for block in BLOCKS:
        found = EXAMPLE.find(block, start)
        assert found >= 0, f"not in the example:\n{block}"
        start = found + len(block)
    code = ast.parse(EXAMPLE)
    shown = ast.parse("".join(BLOCKS))
    assert ast.dump(ast.Module(code.body[1:], [])) == ast.dump(ast.Module(shown.body, []))  # but the docstring


def test_family_takes_less_than_20_lines():
    (block,) = [b for b in BLOCKS if "GymFamily(" in b]
    assert len([line for line in block.splitlines() if line.strip()]) < 20


def test_family_of_the_example_works(tmp_path):
    """Without its training, which runs where all examples do: the splits, a step, and the checker's view of it."""
    definitions = tmp_path / "carts.py"
    definitions.write_text(EXAMPLE.partition("\nfamily = cart_family()")[0])
    family = runpy.run_path(str(definitions))["cart_family"](horizon=5)
    generator = torch.Generator().manual_seed(0)
    train, ood = (family.sample(200, split, generator).abs() for split in ("train", "ood"))
    assert train.max() <= 1 < ood.min()
    env = family.env(torch.tensor([[1.0], [-1.0]]))
    env.reset(seed=0)
    returns = torch.zeros(2)
    for _ in range(5):
        (
            _,
            reward,
            *_,
        ) = env.step(torch.ones(2, 1))
        returns += reward
    assert returns[0] > returns[1]  # both were pushed towards the first target
    with pytest.raises(ValueError, match="cart-v1: expected a split"):
        family.sample(1, "validation", generator)
