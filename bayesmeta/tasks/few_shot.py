"""Few-shot classification: tasks of a few classes each, drawn from any collection of labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import one_hot

from bayesmeta.tasks.checks import checked_params
from bayesmeta.types import SPLITS, Context, Spec


@dataclass(frozen=True)
class ImageClasses:
    """Images sorted by class: the ``sizes[c]`` images of class ``c`` stand behind those of the classes before it.

    ``images [I, C, H, W]`` are uint8, which are read as ``value / 255``, or float32, taken as they are. ``sizes [P]``
    sums to ``I``. Raises ValueError if they do not fit together.
    """

    images: Shaped[Tensor, "I C H W"]
    sizes: Int[Tensor, "P"]

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"ImageClasses: expected uint8 or float32 images, got {self.images.dtype}; convert them")
        if int(self.sizes.sum()) != len(self.images) or bool((self.sizes < 0).any()):
            raise ValueError(
                f"ImageClasses: expected class sizes that sum to the {len(self.images)} images, got "
                f"{int(self.sizes.sum())}"
            )

    @staticmethod
    def of(classes: Sequence[Any]) -> "ImageClasses":
        """From one array or tensor ``[n_i, C, H, W]`` per class, each with its own ``n_i``."""
        tensors = [torch.as_tensor(images) for images in classes]
        return ImageClasses(torch.cat(tensors), torch.tensor([len(images) for images in tensors]))

    @staticmethod
    def labelled(images: Any, labels: Any) -> "ImageClasses":
        """From images ``[I, C, H, W]`` in any order and their classes ``[I]``, integers from 0 on."""
        images, labels = torch.as_tensor(images), torch.as_tensor(labels).long()
        return ImageClasses(images[labels.argsort(stable=True)], labels.bincount())


class FewShot:
    """``ways`` classes of a collection, to be told apart from a few images of each.

    ``splits`` gives the classes of ``train``, ``test`` and, if there is one, ``ood``, as indices into ``data``; no
    class may be in two of them. With ``rotations`` every class turned by 90, 180 and 270 degrees is a class of its own,
    and with ``mirrors`` its mirror images too, in every split. ``relatives`` says whether several poses of one class
    may meet in a task.

    A task is ``ways`` distinct classes in random order, ``class + P * pose`` with ``P`` the number of classes in
    ``data`` and ``pose`` from 0 on: as many quarter turns counterclockwise, and the mirrored ones behind them. **What
    is called class ``k`` is an accident of the task**: a label has no meaning beyond it.

    A datum is an image, flat, in ``spec.x_shape = (C, H, W)``, and the one-hot code of its class. There is no ``model``
    and no ``exact``: nobody knows the law that images of a class obey.

    Raises ValueError for splits that overlap, are too small or name no class, and for turned images that are not
    square.
    """

    def __init__(
        self,
        data: ImageClasses,
        splits: Mapping[str, Sequence[int]],
        *,
        ways: int = 5,
        name: str = "few_shot",
        rotations: bool = False,
        mirrors: bool = False,
        relatives: bool = True,
    ) -> None:
        _, *shape = data.images.shape
        names = tuple(f"class_{k}" for k in range(ways))
        self.spec = Spec(name, shape[0] * shape[1] * shape[2], ways, names, classes=True, x_shape=tuple(shape))
        self.data, self.relatives = data, relatives
        self._poses = [(turns, mirror) for mirror in range(1 + mirrors) for turns in (range(4) if rotations else [0])]
        if rotations and shape[1] != shape[2]:
            raise ValueError(f"{name}: expected square images to rotate, got {tuple(shape)}; crop them first")
        each = len(self._poses) if relatives else 1
        _check_splits(name, splits, len(data.sizes), ways, each)
        self._splits = {split: torch.tensor(list(classes)) for split, classes in splits.items()}
        self._first = data.sizes.cumsum(0) - data.sizes
        self._longest = int(data.sizes.max())

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n ways"]:
        """The classes of ``n`` tasks, whole numbers. Raises ValueError for a split that there is not."""
        if split not in self._splits:
            raise ValueError(f"{self.spec.name}: expected a split of {', '.join(self._splits)}; got {split!r}")
        device, ways, poses = generator.device, self.spec.y_dim, len(self._poses)
        pool = self._splits[split].to(device)
        # The order of random keys is a random order, without replacement.
        keys = torch.rand(n, len(pool) * (poses if self.relatives else 1), generator=generator, device=device)
        drawn = keys.topk(ways).indices
        if self.relatives:
            pose = drawn // len(pool)
        else:
            pose = torch.randint(poses, drawn.shape, generator=generator, device=device)
        return (pool[drawn % len(pool)] + len(self.data.sizes) * pose).float()

    def context(self, params: Float[Tensor, "B ways"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` images of each task, all classes counted, and none twice: row ``i`` is of class ``i mod ways``.

        The first ``K * ways`` rows are thus ``K`` of each class, the support of a ``K``-shot task, and the others its
        queries. Raises ValueError if a class has fewer images than ``shots / ways``, rounded up, and for ``params``
        that are not classes.
        """
        classes, pose = self._classes(params)
        ways, each = self.spec.y_dim, -(-shots // self.spec.y_dim)
        sizes = self.data.sizes.to(params.device)[classes]
        if shots and int(sizes.min()) < each:
            raise ValueError(
                f"{self.spec.name}: expected at most {int(sizes.min())} images of each class, as many as the smallest "
                f"one has, got shots = {shots} for {ways} classes, which takes {each}"
            )
        keys = torch.rand(*classes.shape, self._longest, generator=generator, device=params.device)
        keys = keys.masked_fill(torch.arange(self._longest, device=params.device) >= sizes.unsqueeze(-1), -1.0)
        drawn = self._first.to(params.device)[classes].unsqueeze(-1) + keys.topk(each).indices
        rows = drawn.transpose(1, 2).flatten(1)[:, :shots]
        x = self._images(rows, pose.repeat(1, each)[:, :shots]).to(params.device)
        label = (torch.arange(shots, device=params.device) % ways).expand(len(params), shots)
        return Context.of(x, one_hot(label, ways).float())

    def _classes(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The class of each column and its pose."""
        params = checked_params(params, self.spec).detach()
        count = len(self.data.sizes)
        if bool((params < 0).any() | (params >= count * len(self._poses)).any() | (params != params.round()).any()):
            raise ValueError(
                f"{self.spec.name}: expected classes from 0 to {count * len(self._poses) - 1}, got "
                f"{params.min():g} to {params.max():g}; pass what sample() returns"
            )
        return params.long() % count, params.long() // count

    def _images(self, rows: Tensor, pose: Tensor) -> Tensor:
        """Images ``[B, shots, X]`` of the collection, posed, as float32."""
        device = self.data.images.device
        images, pose = self.data.images[rows.to(device)], pose.to(device)
        for k, (turns, mirror) in enumerate(self._poses[1:], 1):
            posed = images[pose == k]
            images[pose == k] = (posed.flip(-1) if mirror else posed).rot90(turns, (-2, -1))
        flat = images.flatten(2)
        return flat.float() / 255.0 if flat.dtype == torch.uint8 else flat


def _check_splits(name: str, splits: Mapping[str, Sequence[int]], count: int, ways: int, each: int) -> None:
    """A ValueError that says which split does not do, if one does not."""
    if ways < 2 or not {"train", "test"} <= set(splits) <= set(SPLITS):
        raise ValueError(
            f"{name}: expected ways >= 2 and classes for train, test and perhaps ood, got ways = {ways} and "
            f"{', '.join(splits) or 'none'}"
        )
    seen: dict[int, str] = {}
    for split, classes in splits.items():
        for index in classes:
            if not 0 <= index < count or index in seen:
                where = f"in {seen[index]} already" if index in seen else f"not one of 0 to {count - 1}"
                raise ValueError(f"{name}: class {index} of {split} is {where}; give every class to one split only")
            seen[index] = split
        if len(classes) * each < ways:
            raise ValueError(
                f"{name}: expected at least {ways} classes in {split}, one for each way, got {len(classes) * each}"
            )
