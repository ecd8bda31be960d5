"""The import arrows of docs/design.md point one way, and the library keeps its hands off global state.

Every rule is a function from sources to a list of offences, so that it is tried on bad sources too.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "bayesmeta": ROOT / "bayesmeta",
    "bayesmeta.models": ROOT / "models",
    "bayesmeta.inference": ROOT / "inference",
    "bayesmeta.configs": ROOT / "configs",
}

# From the bottom up; a module may import its own layer and those below it.
LAYERS = (
    ("types", "guards"),
    ("models",),
    ("inference",),
    ("rl", "tasks", "replay", "trial_replay", "collect", "episodic"),
    ("algorithms",),
    (
        *("train", "evaluate", "diagnostics", "cli"),
        *("checkpoint", "config", "configs", "folder", "logging", "runs", "signals"),
    ),
)

ARVIZ = {"arviz", "arviz_base", "arviz_plots", "arviz_stats"}

# What changes the state that a whole process shares, and what to do instead.
GLOBAL_STATE = {
    "pyro.param": "parameters belong to modules",
    "pyro.module": "it registers parameters in the global store; parameters belong to modules",
    "pyro.get_param_store": "parameters belong to modules",
    "pyro.clear_param_store": "parameters belong to modules",
    "pyro.set_rng_seed": "take a torch.Generator",
    "torch.manual_seed": "take a torch.Generator",
    "torch.seed": "take a torch.Generator",
    "random.seed": "take a random.Random",
    "numpy.random.seed": "take a numpy.random.Generator",
    "torch.set_default_dtype": "give the dtype where the tensor is made",
    "torch.set_default_device": "give the device where the tensor is made",
}
# Modules that seed the global streams inside a `with` and put them back: the loop, because a library's streams are part
# of a run; the evaluation, so that it never changes training; NUTS, because Pyro takes no generator.
ALLOWED = {
    ("bayesmeta.train", "random.seed"),
    ("bayesmeta.train", "numpy.random.seed"),
    ("bayesmeta.train", "torch.manual_seed"),
    ("bayesmeta.evaluate", "torch.manual_seed"),
    ("bayesmeta.models.randomness", "torch.manual_seed"),
}


def library() -> dict[str, str]:
    """Source of every module of the library by import name; packages end in ``.__init__``."""
    sources = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            sources[".".join([package, *path.relative_to(folder).with_suffix("").parts])] = path.read_text()
    return sources


def scripts() -> dict[str, str]:
    """Source of every other Python file of the repository by path."""
    paths = [p for folder in ("tests", "benchmarks", "examples", "docs") for p in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in [*ROOT.glob("*.py"), *paths]}


def imports(name: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted target of every import, wherever it stands; ``from a import b`` is ``a.b``."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant))


def layer(name: str) -> int | None:
    """The layer of a module, None for the package itself, which names everything but imports nothing."""
    part = name.split(".")[1]
    if part == "__init__":
        return None
    for rank, members in enumerate(LAYERS):
        if part in members:
            return rank
    raise LookupError(f"{name} has no layer: give it one in tests/test_layers.py and docs/design.md")


def resolve(target: str, modules: dict[str, str]) -> str | None:
    """The library's module that an import target names: the module itself, or the one it takes a name from."""
    for candidate in (target, target.rpartition(".")[0]):
        for module in (candidate, f"{candidate}.__init__"):
            if module in modules:
                return module
    return None


def upward(modules: dict[str, str]) -> list[str]:
    """Imports that point up, and imports from the package itself, which hide where they point."""
    offences = []
    for name, source in modules.items():
        own = layer(name)
        for line, target in imports(name, source):
            module = resolve(target, modules)
            if module is None:
                continue
            other = layer(module)
            if other is None and target != "bayesmeta.__version__":
                offences.append(f"{name}:{line} imports {target}: import it from the module that defines it")
            elif own is None or (other is not None and other > own):
                offences.append(f"{name}:{line} imports {target}, which lies above it")
    return offences


def circle(modules: dict[str, str]) -> list[str]:
    """The first circle of imports, if there is one."""
    graph = {
        name: {m for _, target in imports(name, source) if (m := resolve(target, modules)) not in (None, name)}
        for name, source in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def bare(sources: dict[str, str]) -> list[str]:
    """Imports of the folders by their own names: each class would exist twice."""
    folders = {"models", "inference", "configs"}
    return [
        f"{name}:{line} imports {target}: write bayesmeta.{target}"
        for name, source in sources.items()
        for line, target in imports(name, source)
        if target.split(".")[0] in folders
    ]


def arviz_users(modules: dict[str, str]) -> set[str]:
    return {n for n, source in modules.items() for _, target in imports(n, source) if target.split(".")[0] in ARVIZ}


def global_state(modules: dict[str, str]) -> list[str]:
    """Uses of what the whole process shares, under whatever name it was imported."""
    offences = []
    for name, source in modules.items():
        tree = ast.parse(source)
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {
                    a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
                }
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Name):
                head, _, rest = ast.unparse(node).partition(".")
                used = ".".join(filter(None, [names.get(head, ""), rest]))
                if used in GLOBAL_STATE and (name, used) not in ALLOWED:
                    offences.append(f"{name}:{node.lineno} uses {used}: {GLOBAL_STATE[used]}")
    return offences


def test_arrows_point_down():
    assert not upward(library())


def test_no_circle():
    assert not circle(library())


def test_no_bare_import_anywhere():
    assert not bare(library() | scripts())


def test_no_bare_target_in_configs():
    for path in PACKAGES["bayesmeta.configs"].rglob("*.yaml"):
        assert not re.search(r"_target_:\s*['\"]?(models|inference|configs)\.", path.read_text()), path


def test_one_module_knows_arviz():
    assert arviz_users(library()) <= {"bayesmeta.diagnostics.arviz"}


def test_no_global_state():
    assert not global_state(library())


def test_import_is_light():
    code = "import sys, bayesmeta; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "numpy", "pyro", "gymnasium", "mujoco", "hydra", "matplotlib", "xarray", *ARVIZ}
    assert "bayesmeta" in loaded
    assert not heavy & set(loaded)


BASE = {
    "bayesmeta.__init__": "",
    "bayesmeta.types": "",
    "bayesmeta.models.__init__": "",
    "bayesmeta.models.a": "from bayesmeta.types import Context",
    "bayesmeta.inference.b": "import bayesmeta.models.a",
    "bayesmeta.tasks.t": "from bayesmeta.models import a",
    "bayesmeta.train": "def f():\n    from .tasks import t",
}


def test_good_sources_pass():
    assert not upward(BASE) and not circle(BASE) and not bare(BASE) and not global_state(BASE)


@pytest.mark.parametrize(
    "module, source, offence",
    [
        ("bayesmeta.models.a", "from bayesmeta.inference.b import f", "which lies above it"),
        ("bayesmeta.models.a", "from bayesmeta.inference import b", "which lies above it"),
        ("bayesmeta.models.a", "from ..inference.b import f", "which lies above it"),
        ("bayesmeta.models.a", "def f():\n    import bayesmeta.train", "models.a:2 imports bayesmeta.train"),
        ("bayesmeta.types", "import importlib\nimportlib.import_module('bayesmeta.tasks.t')", "types:2"),
        ("bayesmeta.__init__", "from bayesmeta.types import Context", "which lies above it"),
        ("bayesmeta.tasks.t", "from bayesmeta import Context", "from the module that defines it"),
        ("bayesmeta.tasks.t", "import bayesmeta", "from the module that defines it"),
    ],
)
def test_upward_import_is_found(module, source, offence):
    (found,) = upward(BASE | {module: source})
    assert offence in found


def test_module_without_layer_is_found():
    with pytest.raises(LookupError, match=r"bayesmeta\.helpers has no layer: give it one"):
        upward(BASE | {"bayesmeta.helpers": ""})


def test_circle_is_found():
    both = {"bayesmeta.tasks.t": "import bayesmeta.tasks.u", "bayesmeta.tasks.u": "from bayesmeta.tasks.t import f"}
    assert set(circle(BASE | both)) == set(both)


@pytest.mark.parametrize(
    "source", ["import models", "from models import a", "import inference.b as b", "from configs.x import y"]
)
def test_bare_import_is_found(source):
    (found,) = bare({"tests/test_x.py": source})
    assert "write bayesmeta." in found


@pytest.mark.parametrize("source", ["import arviz", "import arviz as az", "from arviz_base import from_dict"])
def test_arviz_is_found(source):
    assert arviz_users({"bayesmeta.train": f"def f():\n    {source}"}) == {"bayesmeta.train"}


@pytest.mark.parametrize(
    "source, used",
    [
        ("import pyro\npyro.param('a')", "pyro.param"),
        ("import pyro as p\nstore = p.get_param_store()", "pyro.get_param_store"),
        ("from pyro import clear_param_store as c\nc()", "pyro.clear_param_store"),
        ("import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
        ("from numpy import random\nrandom.seed(0)", "numpy.random.seed"),
        ("import random\nrandom.seed(0)", "random.seed"),
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed"),
        ("import torch.nn\nseed = torch.manual_seed", "torch.manual_seed"),
        ("from torch import set_default_dtype\nset_default_dtype(1)", "torch.set_default_dtype"),
    ],
)
def test_global_state_is_found(source, used):
    (found,) = global_state({"bayesmeta.tasks.t": source})
    assert f"uses {used}: " in found


@pytest.mark.parametrize("source", ["import torch\ntorch.Generator().manual_seed(0)", "def f(random): random.seed(0)"])
def test_own_generator_is_no_global_state(source):
    assert not global_state({"bayesmeta.tasks.t": source})


def test_seeding_is_allowed_where_it_is_the_modules_job():
    source = "import torch\ntorch.manual_seed(0)"
    assert not global_state({"bayesmeta.train": source})
    assert global_state({"bayesmeta.collect": source})


def test_names_of_the_package_are_not_its_modules():
    """``bayesmeta.train`` would be the function until something imports the module, and the module after that."""
    import bayesmeta

    modules = {path.stem for path in PACKAGES["bayesmeta"].iterdir()} | {"models", "inference", "configs"}
    assert not modules & set(bayesmeta._LAZY)
