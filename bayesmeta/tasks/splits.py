"""The splits of the supervised families: train and test are the prior, ood lies beyond it."""

from bayesmeta.types import SPLITS, Spec


def is_ood(spec: Spec, split: str) -> bool:
    """Whether the split lies beyond the prior. Raises ValueError naming the valid splits if it is none of them."""
    if split not in SPLITS:
        raise ValueError(f"{spec.name}: expected a split of {', '.join(SPLITS)}; got {split!r}")
    return split == "ood"
