"""miniImageNet: 100 classes of ImageNet with 600 colour photographs each."""

import csv
from pathlib import Path

import numpy as np
import torch

from bayesmeta.tasks.array_pickle import load_arrays
from bayesmeta.tasks.few_shot import FewShot, ImageClasses
from bayesmeta.tasks.image_files import EvaluateOn, Opener, by_part, cached, opener_of, read_classes

PARTS = ("train", "val", "test")
LAYOUT = (
    "expected in it the folder images with train.csv, val.csv and test.csv (Ravi and Larochelle 2017; the lists are in "
    "the repository twitter-research/meta-learning-lstm on GitHub, the photographs in ImageNet's ILSVRC 2012), or "
    "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl (Ren et al. 2018, repository renmengye/few-shot-ssl-public)"
)


class MiniImageNet:
    """``mini_imagenet-v1``: ``ways`` classes, colour images of ``size`` x ``size`` in [0, 1], channels first.

    The split of Ravi and Larochelle 2017: 64 classes to train, 16 to validate, 20 to test. ``root`` holds either the
    photographs in ``images/`` with ``train.csv``, ``val.csv`` and ``test.csv`` (columns ``filename,label``), resized
    here with a Lanczos filter as in the code of Finn, Abbeel and Levine 2017, or the files
    ``mini-imagenet-cache-*.pkl`` of 84 x 84, which their authors made with another filter. A pickle can hold code;
    these are read as arrays and nothing else, see :mod:`bayesmeta.tasks.array_pickle`.

    ``evaluate_on = validation`` makes the validation classes the ``test`` split. There is no ``ood`` split. Resizing
    60,000 photographs takes minutes: with ``cache``, a folder, it is done once. At 84 x 84 they take 1.3 GB of memory.
    Raises ValueError if the data are not there.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        ways: int = 5,
        evaluate_on: EvaluateOn = "test",
        size: int = 84,
        cache: str | None = None,
    ) -> None:
        if root is None:
            raise ValueError(f"MiniImageNet: expected root, the folder with the data, got null; {LAYOUT}")
        data, names = cached(cache, f"mini_imagenet-{size}", lambda: read_mini_imagenet(Path(root), size))
        train, validation, test = by_part(names, PARTS)
        splits = {"train": train, "test": test if evaluate_on == "test" else validation}
        few_shot = FewShot(data, splits, ways=ways, name="mini_imagenet-v1")
        self.spec, self.sample, self.context = few_shot.spec, few_shot.sample, few_shot.context


def read_mini_imagenet(root: Path, size: int) -> tuple[ImageClasses, list[str]]:
    """All images, and the names ``PART/LABEL`` of their classes. Raises ValueError if they are not in ``root``."""
    if all((root / f"{part}.csv").is_file() for part in PARTS) and (root / "images").is_dir():
        return _from_lists(root, size)
    if all((root / f"mini-imagenet-cache-{part}.pkl").is_file() for part in PARTS):
        return _from_pickles(root, size)
    raise ValueError(f"MiniImageNet: found no data in root = {root}; {LAYOUT}")


def _from_lists(root: Path, size: int) -> tuple[ImageClasses, list[str]]:
    classes: dict[str, list[Opener]] = {}
    for part in PARTS:
        with (root / f"{part}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                photograph = root / "images" / row.get("filename", "")
                if not row.get("label") or not photograph.is_file():
                    raise ValueError(
                        f"MiniImageNet: {part}.csv: expected the columns filename,label and each file in "
                        f"{root / 'images'}, got {row}"
                    )
                classes.setdefault(f"{part}/{row['label']}", []).append(opener_of(photograph))
    return read_classes(classes, size, grayscale=False), list(classes)


def _from_pickles(root: Path, size: int) -> tuple[ImageClasses, list[str]]:
    images, sizes, names = [], [], []
    for part in PARTS:
        path = root / f"mini-imagenet-cache-{part}.pkl"
        found = load_arrays(path)
        pixels, classes = found.get("image_data"), found.get("class_dict")
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (size, size, 3) or not isinstance(classes, dict):
            got = pixels.shape if isinstance(pixels, np.ndarray) else sorted(found)
            raise ValueError(f"{path}: expected image_data [n, {size}, {size}, 3] and class_dict, got {got}")
        rows = [row for label in classes for row in classes[label]]
        images.append(torch.from_numpy(pixels.transpose(0, 3, 1, 2)[rows]))
        sizes += [len(classes[label]) for label in classes]
        names += [f"{part}/{label}" for label in classes]
    return ImageClasses(torch.cat(images).contiguous(), torch.tensor(sizes)), names
