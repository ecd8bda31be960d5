"""Collections of images from files: folders of classes, archives, and a decoded copy that loads at once."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8

from bayesmeta.tasks.few_shot import FewShot, ImageClasses

Opener = Callable[[], AbstractContextManager[Any]]
"""Opens one binary file."""
EvaluateOn = Literal["test", "validation"]
"""Which classes are the ``test`` split: those of the publications' test, or those kept to choose settings by."""


def read_image(file: Any, size: int, grayscale: bool) -> UInt8[np.ndarray, "C size size"]:
    """The image in a binary file as ``[C, size, size]``, ``C`` = 1 or 3, with a Lanczos filter if it is resized."""
    from PIL import Image

    with Image.open(file) as image:
        converted = image.convert("L" if grayscale else "RGB")
        pixels = np.asarray(converted.resize((size, size), Image.Resampling.LANCZOS))
    return pixels[None] if grayscale else pixels.transpose(2, 0, 1)


def read_classes(classes: Mapping[str, Sequence[Opener]], size: int, grayscale: bool) -> ImageClasses:
    """The images of each class, in the order given."""
    total = sum(len(files) for files in classes.values())
    images = torch.empty(total, 1 if grayscale else 3, size, size, dtype=torch.uint8)
    pixels = images.numpy()
    openers = (opener for files in classes.values() for opener in files)
    for row, opener in enumerate(openers):
        with opener() as file:
            pixels[row] = read_image(file, size, grayscale)
    return ImageClasses(images, torch.tensor([len(files) for files in classes.values()], dtype=torch.int64))


def cached(
    cache: str | None, name: str, read: Callable[[], tuple[ImageClasses, list[str]]]
) -> tuple[ImageClasses, list[str]]:
    """What ``read`` gives, images and the names of their classes; from ``cache/name.npz`` if it is there.

    Otherwise that file is written, whole or not at all, unless ``cache`` is None. It does not follow later changes of
    the data: delete it to read them anew.
    """
    path = None if cache is None else Path(cache) / f"{name}.npz"
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            data = ImageClasses(torch.from_numpy(stored["images"]), torch.from_numpy(stored["sizes"]))
            return data, stored["names"].tolist()
    data, names = read()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, images=data.images.numpy(), sizes=data.sizes.numpy(), names=np.array(names, dtype=str))
        part.replace(path)
    return data, names


def by_part(names: Sequence[str], parts: Sequence[str]) -> list[list[int]]:
    """Which classes have a name ``PART/...``, for each part."""
    return [[i for i, name in enumerate(names) if name.split("/")[0] == part] for part in parts]


def opener_of(path: Path) -> Opener:
    """Opens the file when it is called, so that one file is open at a time."""
    return lambda: path.open("rb")


def folder_of_classes(
    path: str | Path,
    *,
    size: int,
    grayscale: bool = False,
    ways: int = 5,
    rotations: bool = False,
    evaluate_on: EvaluateOn = "test",
    name: str = "folder_of_classes",
) -> FewShot:
    """Few-shot tasks from your own files, ``path/SPLIT/CLASS/FILE``, resized to ``size`` x ``size``.

    The splits are ``train``, ``test``, and, where there are such folders, ``ood`` and ``val``; with ``evaluate_on =
    "validation"`` the classes of ``val`` are the test split. A class is every folder in its split with every file in
    it, whatever pillow can read; names that begin with a dot are left out. Raises ValueError for another layout.
    """
    root = Path(path)
    folders = {"train": "train", "test": "test" if evaluate_on == "test" else "val"}
    if (root / "ood").is_dir():
        folders["ood"] = "ood"
    classes: dict[str, list[Opener]] = {}
    for folder in folders.values():
        inner = [found for found in _visible(root / folder) if found.is_dir()]
        if not inner:
            raise ValueError(
                f"{name}: expected images in {root / folder}/CLASS/FILE, found no such folders; give the path that has "
                f"{' and '.join(folders.values())} in it"
            )
        classes |= {f"{folder}/{found.name}": [opener_of(file) for file in _visible(found)] for found in inner}
    splits = dict(zip(folders, by_part(list(classes), list(folders.values())), strict=True))
    return FewShot(read_classes(classes, size, grayscale), splits, ways=ways, name=name, rotations=rotations)


def _visible(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if not path.name.startswith("."))
