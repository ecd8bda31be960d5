"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people."""

import contextlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from bayesmeta.tasks.few_shot import FewShot, ImageClasses
from bayesmeta.tasks.image_files import EvaluateOn, Opener, by_part, cached, opener_of, read_classes

PARTS = ("images_background", "images_evaluation")
LAYOUT = (
    "expected the published layout below it, images_background/ALPHABET/characterNN/*.png and images_evaluation/..., "
    "or the archives images_background.zip and images_evaluation.zip; they are in the folder python of the repository "
    "brendenlake/omniglot on GitHub"
)


class Omniglot:
    """``omniglot-v1``: ``ways`` characters, grey images of ``size`` x ``size`` in [0, 1], ink = 1.

    ``root`` is the folder of the published data, unpacked or as the two archives. With ``rotations`` each character
    turned by 90, 180 and 270 degrees is a class of its own, in training and at test; a character is in a task in one
    pose only. ``split``:

    - ``random``: 1200 characters drawn with ``seed`` for training, 100 of which are kept for validation, and the other
      423 for test (Finn, Abbeel and Levine 2017);
    - ``background``: the background set's 964 characters for training and the evaluation set's 659 for test (Lake et
      al. 2015); nothing is kept for validation;
    - ``listed``: the files ``train.txt``, ``val.txt`` and ``test.txt`` in the folder ``lists``, with a line
      ``ALPHABET/characterNN`` per class, or four such lines that end in ``/rot000`` ... ``/rot270``: Vinyals' split as
      it comes with the repository jakesnell/prototypical-networks.

    ``evaluate_on = validation`` makes the validation characters the ``test`` split. There is no ``ood`` split. In
    ``cache``, if given, the decoded images are kept.

    Differences from the code of Finn et al.: which characters are in the random split, since theirs follows Python's
    generator and the order of a directory; the drawings are made grey before the Lanczos filter, which pillow does not
    apply to images of two colours; labels follow the order of the rows. Snell, Swersky and Zemel 2017 let several poses
    of a character meet in a task. Raises ValueError if the data are not there.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        ways: int = 5,
        split: Literal["random", "background", "listed"] = "random",
        lists: str | None = None,
        evaluate_on: EvaluateOn = "test",
        rotations: bool = True,
        size: int = 28,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        if root is None:
            raise ValueError(f"Omniglot: expected root, the folder with the data, got null; {LAYOUT}")
        data, names = cached(cache, f"omniglot-{size}", lambda: read_omniglot(Path(root), size))
        if split == "random":
            parts = random_split(len(names), seed=seed)
        elif split == "background":
            parts = background_split(names)
        else:
            parts = listed_split(names, lists)
        if evaluate_on not in parts:
            raise ValueError(f"Omniglot: the split {split} keeps no characters for validation; evaluate on test")
        splits = {"train": parts["train"], "test": parts[evaluate_on]}
        few_shot = FewShot(data, splits, ways=ways, name="omniglot-v1", rotations=rotations, relatives=False)
        self.spec, self.sample, self.context = few_shot.spec, few_shot.sample, few_shot.context


def random_split(count: int, *, train: int = 1200, validation: int = 100, seed: int = 0) -> dict[str, list[int]]:
    """``train`` of ``count`` classes at random, the last ``validation`` of them kept for that, and the rest for test.

    Raises ValueError if that leaves a part without classes.
    """
    if not 0 < validation < train < count:
        raise ValueError(
            f"Omniglot: expected more than {train} characters, {train - validation} to train, {validation} to validate "
            f"and the rest to test, got {count}; use split=background for a part of the data"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return {
        "train": order[: train - validation],
        "validation": order[train - validation : train],
        "test": order[train:],
    }


def background_split(names: Sequence[str]) -> dict[str, list[int]]:
    """The background set to train, the evaluation set to test; names as :func:`read_omniglot` gives them."""
    background, evaluation = by_part(names, PARTS)
    return {"train": background, "test": evaluation}


def listed_split(names: Sequence[str], lists: str | None) -> dict[str, list[int]]:
    """The characters that ``train.txt``, ``val.txt`` and ``test.txt`` list, whatever the rotation."""
    files = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
    if lists is None or not all((Path(lists) / file).is_file() for file in files.values()):
        raise ValueError(
            f"Omniglot: split=listed expected the files train.txt, val.txt and test.txt in the folder lists, got "
            f"lists = {lists}"
        )
    index = {name.split("/", 1)[1]: i for i, name in enumerate(names)}
    return {part: list(_listed(Path(lists) / file, index)) for part, file in files.items()}


def _listed(file: Path, index: dict[str, int]) -> Iterator[int]:
    lines = [line.split("/rot")[0] for line in file.read_text().split()]
    for character in dict.fromkeys(lines):  # each once, in order
        if character not in index:
            raise ValueError(f"{file}: expected ALPHABET/characterNN of the data on each line, got {character!r}")
        yield index[character]


def read_omniglot(root: Path, size: int) -> tuple[ImageClasses, list[str]]:
    """All characters, ink = 255, and names ``PART/ALPHABET/characterNN``. Raises ValueError if absent."""
    with contextlib.ExitStack() as archives:
        classes: dict[str, list[Opener]] = {}
        for part in PARTS:
            for name, opener in sorted(_files(root, part, archives), key=lambda pair: pair[0]):
                path = name.split("/")
                if len(path) == 4 and path[0] == part and name.endswith(".png"):
                    classes.setdefault("/".join(path[:3]), []).append(opener)
        data = read_classes(classes, size, grayscale=True)
    return ImageClasses(255 - data.images, data.sizes), list(classes)


def _files(root: Path, part: str, archives: contextlib.ExitStack) -> Iterable[tuple[str, Opener]]:
    """Name and opener of every file of a part, unpacked or not."""
    if (root / part).is_dir():
        return [(p.relative_to(root).as_posix(), opener_of(p)) for p in (root / part).rglob("*.png")]
    if (root / f"{part}.zip").is_file():
        archive = archives.enter_context(zipfile.ZipFile(root / f"{part}.zip"))
        return [(name, partial(archive.open, name)) for name in archive.namelist()]
    raise ValueError(f"Omniglot: found no {part} in root = {root}; {LAYOUT}")
