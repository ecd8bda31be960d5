"""The project as it installs: a wheel and an editable install, each tried in an environment of its own.

Nothing is downloaded. Each environment sees the packages of the running one, but not its editable installs: a ``.pth``
line adds a folder without reading the ``.pth`` files in it.
"""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = {
    "bayesmeta": "bayesmeta",
    "models": "bayesmeta/models",
    "inference": "bayesmeta/inference",
    "configs": "bayesmeta/configs",
}
# Run outside the repository: every part comes from under the given folder, and the configs are found as data.
PROBE = """
import importlib.metadata, importlib.resources, pathlib, sys
import bayesmeta, bayesmeta.configs, bayesmeta.inference.beliefs, bayesmeta.models.task_model
for module in (bayesmeta, bayesmeta.configs, bayesmeta.inference.beliefs, bayesmeta.models.task_model):
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
assert "seed:" in importlib.resources.files("bayesmeta.configs").joinpath("train.yaml").read_text()
import hydra
with hydra.initialize_config_module("bayesmeta.configs", version_base="1.3"):
    config = hydra.compose("train")
    assert {"_target_"} <= set(config.task) & set(config.algorithm)
(script,) = importlib.metadata.entry_points(group="console_scripts", name="bayesmeta")
assert callable(script.load())
assert importlib.metadata.version("bayesmeta") == bayesmeta.__version__
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its whole output is in the failure if it fails."""
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that no build leaves anything in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-index", "--no-build-isolation")
    log = run(*pip, "-w", tree / "dist", tree, cwd=tree)
    assert "would be ignored" not in log, "a folder with data files is not in [tool.setuptools] packages"
    (path,) = (tree / "dist").glob("*.whl")
    return path


def environment(path: Path) -> Path:
    """A fresh virtual environment that sees the running one's packages; its interpreter."""
    venv.create(path, with_pip=False, symlinks=True)
    paths = {"base": str(path), "platbase": str(path)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "outer.pth").write_text("".join(f"{folder}\n" for folder in sorted(outer)))
    return Path(sysconfig.get_path("scripts", "venv", paths)) / "python"


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    )
    run(*pip, "--ignore-installed", *what, cwd=cwd)


def test_wheel_holds_every_file(tree: Path, wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, target in FOLDERS.items():
        for path in (tree / folder).rglob("*"):
            if path.is_file():
                assert f"{target}/{path.relative_to(tree / folder).as_posix()}" in inside
    assert {name.split("/")[0] for name in inside} == {"bayesmeta", f"bayesmeta-{PROJECT['version']}.dist-info"}


def test_wheel_works_elsewhere(wheel: Path, tmp_path: Path):
    python = environment(tmp_path / "venv")
    install(python, wheel, cwd=tmp_path)
    run(python, "-c", PROBE, tmp_path / "venv", cwd=tmp_path)


def test_source_archive_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path):
    build = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    run(sys.executable, "-c", build, "build_sdist", tmp_path, cwd=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    run(sys.executable, "-c", build, "build_wheel", tmp_path, cwd=tmp_path / archive.name.removesuffix(".tar.gz"))
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_editable_install_follows_the_tree(tree: Path, tmp_path: Path):
    python = environment(tmp_path / "venv")
    install(python, "-e", tree, cwd=tmp_path)
    run(python, "-c", PROBE, tree, cwd=tmp_path)
    new = tree / "inference" / "written_after_the_install.py"
    new.write_text("answer = 42")
    try:
        run(python, "-c", "from bayesmeta.inference.written_after_the_install import answer", cwd=tmp_path)
    finally:
        new.unlink()


# What is imported only where it is needed, with an error that names the extra to install.
OPTIONAL = {"sklearn": "images"}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_every_import_is_declared():
    """What the library imports is a core dependency by name, not a lucky guest of another one."""
    imported = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add((node.module or "").split(".")[0])
    declared = names(PROJECT["dependencies"])
    distributions = importlib.metadata.packages_distributions()
    for module in sorted(imported - set(sys.stdlib_module_names) - {"bayesmeta"}):
        providers = {canonicalize_name(name) for name in distributions.get(module, [module])}
        extra = names(PROJECT["optional-dependencies"][OPTIONAL[module]]) if module in OPTIONAL else set()
        assert providers & (declared | extra), f"`import {module}`: none of {sorted(providers)} is a dependency"


def test_every_dependency_is_justified_and_pinned():
    extras = PROJECT["optional-dependencies"]
    everything = names(PROJECT["dependencies"]).union(*(names(lines) for lines in extras.values()))
    page = (ROOT / "docs" / "dependencies.md").read_text()
    justified = {canonicalize_name(name) for name in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)}
    assert justified == everything
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(pin.url is None and str(pin.specifier).startswith("==") for pin in pins)
    assert everything - {canonicalize_name(pin.name) for pin in pins} == {"metaworld"}
