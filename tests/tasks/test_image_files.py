"""The published layouts of image collections, in small archives made here, and what is said where they are not."""

import inspect
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from bayesmeta.config import ConfigError, without_schema
from bayesmeta.runs import build
from bayesmeta.tasks.array_pickle import load_arrays
from bayesmeta.tasks.image_files import folder_of_classes
from bayesmeta.tasks.mini_imagenet import MiniImageNet
from bayesmeta.tasks.omniglot import Omniglot, random_split


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Omniglot, drawn as published: black on white, two colours, 105 x 105. Drawing i of character c is a bar whose length
# tells the character and whose width tells the drawing.

ALPHABETS = {"images_background": {"Angelic": 3, "Braille": 2}, "images_evaluation": {"Atlantean": 3}}
LENGTHS = {
    f"{part}/{a}/character{k + 1:02d}": 15 * (k + 1) + 6 * len(a)
    for part in ALPHABETS
    for a, n in ALPHABETS[part].items()
    for k in range(n)
}


def drawing(length: int, width: int) -> Image.Image:
    pixels = np.full((105, 105), 255, np.uint8)
    pixels[:width, :length] = 0
    return Image.fromarray(pixels).convert("1")


@pytest.fixture
def omniglot(tmp_path: Path) -> Path:
    for character, length in LENGTHS.items():
        (tmp_path / character).mkdir(parents=True)
        for i in range(4):
            drawing(length, 15 * (i + 1)).save(tmp_path / character / f"{length:04d}_{i + 1:02d}.png")
    return tmp_path


def zipped(root: Path, to: Path) -> Path:
    to.mkdir()
    for part in ALPHABETS:
        with zipfile.ZipFile(to / f"{part}.zip", "w") as archive:
            archive.mkdir(part)
            for path in sorted((root / part).rglob("*"), reverse=True):
                archive.write(path, path.relative_to(root))
            archive.writestr(f"__MACOSX/{part}/Angelic/._0007_01.png", b"not an image")
    return to


def test_omniglot_reads_ink_as_one_and_upright(omniglot):
    family = Omniglot(str(omniglot), ways=2, split="background", rotations=False)
    assert family.spec.name == "omniglot-v1" and family.spec.x_shape == (1, 28, 28)
    lengths = list(LENGTHS.values())
    params = torch.arange(8.0).reshape(4, 2)
    x = family.context(params, 8, seeded()).x.reshape(4, 4, 2, 28, 28)
    for c, length in enumerate(lengths):
        images = x[c // 2, :, c % 2]
        heights = sorted((images[:, :, 0] > 0.5).sum(1).tolist())
        assert heights == [4, 8, 12, 16], "15 pixels of 105 are 4 of 28"
        assert ((images[:, 0] > 0.5).sum(1) - length * 28 / 105).abs().max() <= 0.5
        assert (images[:, 0, 0] > 0.99).all() and (images[:, -1, -1] < 0.01).all()
    with pytest.raises(ValueError, match=r"at most 4 images of each class"):
        family.context(params, 9, seeded())


def test_omniglot_archives_are_the_folder(omniglot, tmp_path):
    families = [
        Omniglot(str(root), ways=2, split="background") for root in (omniglot, zipped(omniglot, tmp_path / "zip"))
    ]
    params = families[0].sample(20, "train", seeded())
    assert torch.equal(*(family.context(params, 6, seeded()).x for family in families))


def test_omniglot_splits(omniglot, tmp_path):
    family = Omniglot(str(omniglot), ways=3, split="background")
    train, test = (set(family.sample(200, split, seeded()).long().flatten().tolist()) for split in ("train", "test"))
    assert train == {c + 8 * pose for c in range(5) for pose in range(4)}
    assert test == {c + 8 * pose for c in range(5, 8) for pose in range(4)}
    assert (family.sample(200, "test", seeded()) % 8).sort(1).values.diff(dim=1).all(), "a character twice in a task"
    lists = tmp_path / "lists"
    lists.mkdir()
    listed = {
        "train": ["Braille/character02", "Angelic/character01"],
        "val": ["Angelic/character03", "Braille/character01"],
    }
    for file, characters in (listed | {"test": ["Atlantean/character02", "Atlantean/character01"]}).items():
        turned = [f"{c}/rot{angle:03d}" for c in characters for angle in (0, 90, 180, 270)]
        (lists / f"{file}.txt").write_text("\n".join(turned if file != "val" else characters))
    for evaluate_on, expected in (("test", {5, 6}), ("validation", {2, 3})):
        family = Omniglot(str(omniglot), ways=2, split="listed", lists=str(lists), evaluate_on=evaluate_on)
        assert set((family.sample(50, "train", seeded()) % 8).flatten().tolist()) == {0, 4}
        assert set((family.sample(50, "test", seeded()) % 8).flatten().tolist()) == expected
    (lists / "val.txt").write_text("Klingon/character01")
    with pytest.raises(ValueError, match=r"val.txt: expected ALPHABET/characterNN of the data .*'Klingon/character01'"):
        Omniglot(str(omniglot), ways=2, split="listed", lists=str(lists))
    with pytest.raises(ValueError, match=r"expected the files train.txt, val.txt and test.txt .* got lists = None"):
        Omniglot(str(omniglot), ways=2, split="listed")
    with pytest.raises(ValueError, match=r"split background keeps no characters for validation"):
        Omniglot(str(omniglot), ways=2, split="background", evaluate_on="validation")
    with pytest.raises(ValueError, match=r"expected more than 1200 characters, 1100 to train, 100 to validate.*got 8"):
        Omniglot(str(omniglot), ways=2)


def test_random_split_is_that_of_the_publication():
    parts = random_split(1623)
    assert {part: len(classes) for part, classes in parts.items()} == {"train": 1100, "validation": 100, "test": 423}
    assert sorted([*parts["train"], *parts["validation"], *parts["test"]]) == list(range(1623))
    assert random_split(1623) == parts != random_split(1623, seed=1)
    assert parts["train"] != sorted(parts["train"])


def test_decoded_images_are_kept(omniglot, tmp_path):
    cache = tmp_path / "cache"
    first, second = (Omniglot(str(root), ways=2, split="background", cache=str(cache)) for root in (omniglot, "gone"))
    params = first.sample(20, "test", seeded())
    assert torch.equal(*(family.context(params, 6, seeded()).x for family in (first, second)))
    assert [path.name for path in cache.iterdir()] == ["omniglot-28.npz"]


# miniImageNet: photographs of one colour per class and one brightness per photograph.

LISTS = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07"]}
COLOURS = {
    label: (200 - 20 * i, 30 * i, 90) for i, label in enumerate(label for labels in LISTS.values() for label in labels)
}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for part, labels in LISTS.items():
        rows = ["filename,label"]
        for label in labels:
            for i in range(3):
                name = f"{label}{i:08d}.jpg"
                colour = tuple(c + 9 * i for c in COLOURS[label])
                Image.new("RGB", (30 + i, 20), colour).save(tmp_path / "images" / name, quality=95)
                rows.append(f"{name},{label}")
        (tmp_path / f"{part}.csv").write_text("\n".join(rows))
    return tmp_path


def pickles(folder: Path, protocol: int, part_of: Callable = lambda data: data) -> Path:
    folder.mkdir(exist_ok=True)
    for part, labels in LISTS.items():
        colours = [[c + 9 * i for c in COLOURS[label]] for i in range(3) for label in labels]  # classes interleaved
        pixels = np.array(colours, np.uint8)[:, None, None].repeat(6, 1).repeat(6, 2)
        classes = {label: list(range(k, len(pixels), len(labels))) for k, label in enumerate(labels)}
        data = part_of({"image_data": pixels, "class_dict": classes})
        (folder / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(data, protocol))
    return folder


def colours_of(family: MiniImageNet, split: str) -> dict[int, set[tuple[int, ...]]]:
    """The colours, to within what JPEG does, of the images of each class of a split."""
    found: dict[int, set] = {}
    for task in family.sample(30, split, seeded()):
        x = family.context(task[None], 6, seeded()).x.reshape(3, 2, 3, -1)
        assert (x.amax(-1) - x.amin(-1) < 0.02).all(), "not of one colour: channels are mixed with places"
        for column, images in zip(task.long().tolist(), x.mean(-1).transpose(0, 1), strict=True):
            found[column] = {tuple((colour * 25.5).round().int().tolist()) for colour in images}
    return found


@pytest.mark.parametrize("layout", ["lists", 2, 4, 5])
def test_mini_imagenet_layouts(lists, tmp_path, layout):
    root = lists if layout == "lists" else pickles(tmp_path / "pickles", layout)
    for evaluate_on, part in (("test", "test"), ("validation", "val")):
        family = MiniImageNet(str(root), ways=2, evaluate_on=evaluate_on, size=6)
        assert family.spec.x_shape == (3, 6, 6)
        for split, labels in (("train", LISTS["train"]), ("test", LISTS[part])):
            expected = [{tuple(round((c + 9 * i) / 10) for c in COLOURS[label]) for i in range(3)} for label in labels]
            found = colours_of(family, split)
            assert sorted(map(sorted, found.values())) == sorted(map(sorted, expected))


PYTHON_2 = (  # {'image_data': numpy.arange(4, dtype='u1'), 'class_dict': {'n01': [0]}}, by hand as Python 2 writes it
    b"\x80\x02}(U\nimage_datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x04\x85"
    b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x01\x02\xfftb"
    b"U\nclass_dict}U\x03n01]K\x00asu."
)


def test_pickles_of_python_2_are_read(tmp_path):
    path = tmp_path / "two.pkl"
    path.write_bytes(PYTHON_2)
    found = load_arrays(path)
    assert found["image_data"].tolist() == [0, 1, 2, 255] and found["class_dict"] == {"n01": [0]}
    theirs = pickle.loads(PYTHON_2, encoding="latin1")
    assert theirs["image_data"].tolist() == [0, 1, 2, 255], "numpy itself does not read this example"


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "part_of, match",
    [
        (lambda data: data | {"class_dict": Hostile(Path("touched"))}, r"the name pathlib\S*\.\w+, which is refused"),
        (lambda data: data | {"image_data": data["image_data"].astype(float)}, r"got ValueError: an array of f8"),
        (
            lambda data: data | {"image_data": data["image_data"][:, :5]},
            r"image_data \[n, 6, 6, 3\].*got \(\d, 5, 6, 3\)",
        ),
        (lambda data: {"data": data["image_data"]}, r"expected image_data .* and class_dict, got \['data'\]"),
        (lambda data: data["image_data"], r"expected a pickled dictionary of uint8 arrays"),
        (lambda data: np.array([Hostile(Path("touched"))], dtype=object), r"expected a pickled dictionary"),
    ],
)
def test_other_pickles_are_refused_and_run_nothing(tmp_path, monkeypatch, part_of, match):
    monkeypatch.chdir(tmp_path)
    pickles(tmp_path, 4, part_of)
    with pytest.raises(ValueError, match=match):
        MiniImageNet(str(tmp_path), ways=2, size=6)
    assert not Path("touched").exists()


def test_a_hostile_pickle_is_one(tmp_path):
    """The other side of the test above: the standard reader runs it."""
    pickle.loads(pickle.dumps(Hostile(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("family, name", [(Omniglot, "images_background"), (MiniImageNet, "train.csv")])
def test_missing_data_say_what_is_expected_and_where_it_is(tmp_path, family, name):
    for root in (None, str(tmp_path)):
        with pytest.raises(ValueError, match=rf"{family.__name__}: .*root.*{name}.* on GitHub"):
            family(root)
    config = (
        Path(__file__).parents[2] / "configs" / "task" / f"{'omniglot' if family is Omniglot else 'mini_imagenet'}.yaml"
    )
    task = OmegaConf.to_container(OmegaConf.load(config))
    with pytest.raises(ConfigError, match=rf"{family.__name__}: expected root, the folder with the data, got null"):
        build({"task": task, "algorithm": {}})


def test_configurations_build_the_defaults(omniglot, lists):
    """Whatever the configuration says, but for the place and the size of the small archive."""
    for name, family, root, small in (
        ("omniglot", Omniglot, omniglot, {"ways": 2, "split": "background"}),
        ("mini_imagenet", MiniImageNet, lists, {"ways": 2, "size": 6}),
    ):
        stored = OmegaConf.load(Path(__file__).parents[2] / "configs" / "task" / f"{name}.yaml")
        config = without_schema(OmegaConf.to_container(stored))
        assert set(stored["_schema_"]) - {"_kind_"} == set(config) - {"_target_"}
        built, default = instantiate(config | {"root": str(root)} | small), family(str(root), **small)
        assert built.spec == default.spec
        first, second = (f.context(f.sample(4, "train", seeded()), 4, seeded()).x for f in (built, default))
        assert torch.equal(first, second)
        assert {key: config[key] for key in small} == {
            k: p.default for k, p in inspect.signature(family).parameters.items() if k in small
        }


def test_folder_of_classes(tmp_path):
    for split, classes in {"train": "abc", "val": "de", "test": "fg", "ood": "hi"}.items():
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / ".hidden").write_text("not an image")
            for i in range(3):
                Image.new("L", (9, 9), 20 * (ord(name) - ord("a")) + i).save(tmp_path / split / name / f"{i}.bmp")
    for evaluate_on, expected in (("test", "fg"), ("validation", "de")):
        family = folder_of_classes(tmp_path, size=4, grayscale=True, ways=2, evaluate_on=evaluate_on)
        assert family.spec.x_shape == (1, 4, 4)
        for split, letters in (("train", "abc"), ("test", expected), ("ood", "hi")):
            x = family.context(family.sample(30, split, seeded()), 6, seeded()).x
            levels = {20 * (ord(name) - ord("a")) + i for name in letters for i in range(3)}
            assert set((255 * x).round().int().flatten().tolist()) == levels
    assert folder_of_classes(tmp_path, size=4, ways=2, rotations=True).spec.x_shape == (3, 4, 4)
    with pytest.raises(
        ValueError, match=r"mine: expected images in .*train/CLASS/FILE, found no such folders; give the"
    ):
        folder_of_classes(tmp_path / "train", size=4, name="mine")
