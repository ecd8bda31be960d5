"""Few-shot tasks: what is drawn, from which classes and in which pose; and the digits, real images."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from bayesmeta.tasks.digits import TEST, Digits
from bayesmeta.tasks.few_shot import FewShot, ImageClasses
from bayesmeta.types import SupervisedFamily

SIZES = [12, 7, 9, 12, 8, 10, 7, 11, 9]
SPLITS = {"train": [0, 2, 4, 5, 8], "test": [1, 3, 6, 7]}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(cls: int, index: int) -> np.ndarray:
    """An image ``[2, 4, 4]`` that says which it is, and in its corners how it is turned."""
    image = np.zeros((2, 4, 4), np.uint8)
    image[0, 0, :2], image[1, 1:3, 1:3] = (255, 128), [[cls, index], [0, 0]]
    return image


def collection(sizes: list[int] = SIZES) -> ImageClasses:
    return ImageClasses.of([np.stack([marked(c, i) for i in range(n)]) for c, n in enumerate(sizes)])


POSES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda image, m=m, k=k: np.rot90(image[..., ::-1] if m else image, k, (-2, -1)) for m in (0, 1) for k in range(4)
]
READABLE = {
    np.ascontiguousarray(turn(marked(c, i))).tobytes(): (c, i, pose)
    for c, size in enumerate(SIZES)
    for i in range(size)
    for pose, turn in enumerate(POSES)
}
assert len(READABLE) == 8 * sum(SIZES)


def read(x: Tensor) -> tuple[int, int, int]:
    """Class, index and pose of a marked image."""
    return READABLE[(x * 255).round().byte().numpy().tobytes()]


@pytest.mark.parametrize("options", [{}, {"rotations": True}, {"mirrors": True}, {"rotations": True, "mirrors": True}])
@pytest.mark.parametrize("shots", [0, 2, 7, 14, 21])
def test_every_row_is_an_image_of_its_class_and_none_is_there_twice(options, shots):
    """Against one row at a time: class, pose and label of each, in tasks where the smallest class is used up."""
    family = FewShot(collection(), SPLITS, ways=3, **options)
    params = family.sample(6, "test", generator := seeded())
    data = family.context(params, shots, generator)
    # Of these two orders of poses the family has one: turns first, mirrors behind them.
    poses = {0: 0} | ({1: 1, 2: 2, 3: 3} if options.get("rotations") else {})
    if options.get("mirrors"):
        poses |= {len(poses) + k: 4 + pose for k, pose in poses.copy().items()}
    assert isinstance(family, SupervisedFamily) and family.spec.classes and family.spec.x_shape == (2, 4, 4)
    assert data.x.shape == (6, shots, 32) and data.y.shape == (6, shots, 3) and data.mask.all()
    for b in range(6):
        rows = [read(x) for x in data.x[b]]
        assert len(set(rows)) == shots
        for i, (cls, _, pose) in enumerate(rows):
            expected = int(params[b, i % 3])
            assert (cls, pose) == (expected % len(SIZES), poses[expected // len(SIZES)]) and cls in SPLITS["test"]
            assert data.y[b, i].tolist() == [float(k == i % 3) for k in range(3)]


def test_arrays_with_labels_are_sorted_by_class():
    classes = collection()
    order = torch.randperm(len(classes.images), generator=seeded())
    labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    again = ImageClasses.labelled(classes.images[order].numpy(), labels[order].numpy())
    assert again.sizes.tolist() == SIZES
    for c, (mine, theirs) in enumerate(zip(*(d.images.split(SIZES) for d in (again, classes)), strict=True)):
        assert sorted(mine[:, 1, 1, 2].tolist()) == theirs[:, 1, 1, 2].tolist() and (mine[:, 1, 1, 1] == c).all()
    floats = ImageClasses(classes.images.float() * 2, classes.sizes)
    x = FewShot(floats, SPLITS, ways=2).context(torch.tensor([[0.0, 1.0]]), 2, seeded()).x
    assert x.max() == 510, "float32 images are taken as they are"


def test_all_prefixes_are_balanced():
    family = FewShot(collection(), SPLITS, ways=4, rotations=True)
    data = family.context(family.sample(5, "train", generator := seeded()), 20, generator)
    counts = data.y.cumsum(1)
    assert (counts.max(-1).values - counts.min(-1).values <= 1).all()
    assert (counts[:, 3::4] == torch.arange(1.0, 6.0)[:, None]).all()


def largest_score(draws: Tensor, classes: int) -> float:
    """How far the number of times that any class stands in any column is from ``n / classes``, in deviations."""
    counts = torch.nn.functional.one_hot(draws, classes).sum(0)
    n, p = len(draws), 1 / classes
    return float(((counts - n * p) / math.sqrt(n * p * (1 - p))).abs().max())


def test_classes_labels_and_images_are_uniform():
    """Fails by chance less than once in 10^6: 60 and 36 normal scores, Bonferroni. Sorted classes must fail."""
    bound = float(Normal(0.0, 1.0).icdf(torch.tensor(1 - 1e-6 / 2 / 96, dtype=torch.float64)))
    for relatives in (True, False):
        family = FewShot(collection(), SPLITS, ways=3, rotations=True, relatives=relatives)
        params = family.sample(20_000, "train", seeded()).long()
        names = {
            index + len(SIZES) * pose: i
            for i, (index, pose) in enumerate((c, p) for c in SPLITS["train"] for p in range(4))
        }
        drawn = torch.tensor([names.get(k, -1) for k in range(4 * len(SIZES))])[params]
        assert largest_score(drawn, 20) < bound < largest_score(drawn.sort(1).values, 20)
        same = (params % len(SIZES)).sort(1).values.diff(dim=1) == 0
        # Two of three classes out of 20, four to a character: 1 - 20 * 16 * 12 / (20 * 19 * 18) meet a relative.
        share = 1 - 20 * 16 * 12 / (20 * 19 * 18) if relatives else 0.0
        assert abs(float(same.any(1).float().mean()) - share) <= 5 * math.sqrt(share * (1 - share) / 20_000)
    plain = FewShot(collection(), SPLITS, ways=2)
    x = plain.context(torch.tensor([[0.0, 3.0]]).expand(20_000, 2), 6, seeded()).x.unflatten(-1, (2, 4, 4))
    images = (255 * x[:, 0::2, 1, 1, 2]).round().long()
    assert largest_score(images, 12) < bound < largest_score(images.sort(1).values, 12)


def test_tasks_come_from_the_generator_alone():
    family = FewShot(collection(), SPLITS, ways=3, rotations=True, relatives=False)
    state = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        params = family.sample(4, "train", generator := seeded(seed))
        drawn.append((params, family.context(params, 6, generator).x))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, drawn[0], drawn[1])) and not any(map(torch.equal, drawn[0], drawn[2]))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"splits": {"train": [0, 1, 2], "test": [2, 3, 4]}}, r"class 2 of test is in train already; give every class"),
        ({"splits": {"train": [0, 1, 2], "test": [3, 4, 9]}}, r"class 9 of test is not one of 0 to 8"),
        (
            {"splits": {"train": [0, 1, 2], "test": [3, 4]}},
            r"expected at least 3 classes in test, one for each way, got 2",
        ),
        (
            {"splits": {"train": [0, 1, 2]}},
            r"expected ways >= 2 and classes for train, test and perhaps ood, got .* train",
        ),
        ({"splits": SPLITS, "ways": 1}, r"expected ways >= 2"),
        (
            {"splits": SPLITS, "rotations": True, "data": ImageClasses.of([np.zeros((1, 1, 4, 5), np.uint8)] * 9)},
            "square",
        ),
    ],
)
def test_what_cannot_be_a_family_is_refused(options, match):
    with pytest.raises(ValueError, match=f"few_shot: .*{match}"):
        FewShot(**{"data": collection(), "ways": 3, **options})


def test_what_cannot_be_a_task_is_refused():
    family = FewShot(collection(), SPLITS, ways=3, rotations=True)
    with pytest.raises(ValueError, match=r"few_shot: expected a split of train, test; got 'ood'"):
        family.sample(1, "ood", seeded())
    with pytest.raises(
        ValueError, match=r"at most 7 images of each class.*got shots = 22 for 3 classes, which takes 8"
    ):
        family.context(torch.tensor([[0.0, 1.0, 2.0]]), 22, seeded())
    for bad in (-1.0, 36.0, 0.5):
        with pytest.raises(ValueError, match=r"expected classes from 0 to 35, got .*pass what sample\(\) returns"):
            family.context(torch.tensor([[0.0, 1.0, bad]]), 3, seeded())
    with pytest.raises(ValueError, match=r"expected uint8 or float32 images, got torch.float64"):
        ImageClasses.of([np.zeros((3, 1, 2, 2))])
    with pytest.raises(ValueError, match=r"class sizes that sum to the 3 images, got 4"):
        ImageClasses(torch.zeros(3, 1, 2, 2), torch.tensor([2, 2]))


@pytest.mark.gpu
def test_device():
    family = FewShot(collection(), SPLITS, ways=3, rotations=True)
    params = family.sample(4, "train", generator := torch.Generator("cuda").manual_seed(0))
    data = family.context(params, 6, generator)
    assert all(tensor.device.type == "cuda" for tensor in (params, data.x, data.y, data.mask))
    assert [read(x)[0] for x in data.x[0].cpu()] == [int(params[0, i % 3]) % len(SIZES) for i in range(6)]


# Digits.


def test_digits_are_split_by_digit_and_ood_are_negatives():
    family = Digits()
    seen = {
        split: set(family.sample(400, split, seeded()).long().flatten().tolist()) for split in ("train", "test", "ood")
    }
    assert {split: len(classes) for split, classes in seen.items()} == {"train": 56, "test": 24, "ood": 24}
    assert {c % 13 for c in seen["train"]} | set(TEST) == set(range(10)) and {c % 13 for c in seen["test"]} == set(TEST)
    assert family.spec.x_shape == (1, 8, 8) and family.spec.classes
    test = family.sample(50, "test", seeded())
    negative = test + torch.tensor([{3: 7, 4: 7, 7: 5}.get(int(c) % 13) for c in test.flatten()]).reshape(test.shape)
    positive, inverted = (family.context(params, 25, seeded(1)).x for params in (test, negative))
    assert torch.equal(1.0 - positive, inverted) and positive.min() == 0 and positive.max() == 1


def nearest_mean_accuracy(family: Digits, other: int) -> float:
    """Of 5-way 5-shot tasks on held-out digits, learned from their own images or from another task's."""
    params = family.sample(200, "test", generator := seeded())
    data = family.context(params, 50, generator)
    means = data.x[:, :25].unflatten(1, (5, 5)).mean(1).roll(other, 0)
    return float((torch.cdist(data.x[:, 25:], means).argmin(-1) == data.y[:, 25:].argmax(-1)).float().mean())


def test_digits_can_be_told_apart_from_five_of_each():
    """And that labels mean nothing in another task, where chance is 1 in 5 with a standard error below 0.03."""
    family = Digits()
    assert nearest_mean_accuracy(family, 0) > 0.8
    assert abs(nearest_mean_accuracy(family, 1) - 0.2) < 0.1


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"expected scikit-learn.*pip install 'bayesmeta\[images\]'"):
        Digits()
