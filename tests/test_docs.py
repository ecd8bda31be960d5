"""What the pages show works: their Python blocks and the examples run, their commands exist, their links lead to files.

A page's Python blocks share one namespace, in order, in an empty working directory. Blocks that take minutes are
preceded by a line ``<!-- slow -->`` and run with the slow tests only. An example says on a line of its own how it is
run here: ``# test: --iterations 2`` gives it arguments and ``# test: slow`` leaves it to the slow tests.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMANDS = ("train", "evaluate", "diagnose", "list", "--help", "--version")

_FENCE = re.compile(r"^(<!-- slow -->\n+)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_DIRECTIVE = re.compile(r"^# test: *(slow\b)? *(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``line`` is where its code begins."""

    language: str
    code: str
    line: int
    slow: bool


def blocks(text: str) -> list[Block]:
    return [
        Block(m[2].strip(), m[3], text.count("\n", 0, m.start(3)) + 1, slow=m[1] is not None)
        for m in _FENCE.finditer(text)
    ]


def run_python(page: str, shown: list[Block]) -> None:
    """Run the blocks in one namespace; a traceback points at the page's own lines."""
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in shown:
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)


def commands(code: str) -> list[list[str]]:
    """The words of every command of a shell block: continuation lines joined, comments and prompts left out."""
    lines = code.replace("\\\n", " ").splitlines()
    split = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
    return [words for words in split if words]


def check_command(words: list[str], tmp_path: Path) -> None:
    """Fail unless the command exists; a ``bayesmeta train|evaluate|diagnose`` must also compose its configuration."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        goals = [word for word in words[1:] if "=" not in word]
        assert set(goals) <= targets, f"{shlex.join(words)}: the Makefile has {sorted(targets)}"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([^\]]+)\]", shlex.join(words))
        assert {extra for group in named for extra in group.split(",")} <= set(extras), shlex.join(words)
    elif words[0] == "bayesmeta":
        assert len(words) > 1 and words[1] in COMMANDS, f"{shlex.join(words)}: expected one of {COMMANDS}"
        arguments = words[1:]
        if arguments[0] in ("train", "evaluate", "diagnose"):
            # Of a sweep (-m seed=0,1,2) the first job's.
            arguments = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in arguments if word != "-m"]
            arguments += ["--cfg", "job"]
        result = bayesmeta(arguments, tmp_path)
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}{result.stderr}"


def bayesmeta(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    script = "from bayesmeta.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=cwd, capture_output=True, text=True)


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links that lead to no file."""
    targets = (link.split("#")[0] for link in _LINK.findall(text) if "://" not in link)
    return [target for target in targets if target and not (page.parent / target).exists()]


def of(language: str, slow: bool) -> list[object]:
    """The pages with such blocks, as parameters."""
    found = [p for p in PAGES if any(b.language == language and b.slow == slow for b in blocks(p.read_text()))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.mark.parametrize("page", of("python", slow=False))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_python(str(page), [block for block in blocks(page.read_text()) if not block.slow])


@pytest.mark.slow
@pytest.mark.parametrize("page", of("python", slow=True))
def test_all_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_python(str(page), blocks(page.read_text()))


@pytest.mark.parametrize("page", of("bash", slow=False))
def test_commands_exist(page: Path, tmp_path: Path):
    for block in blocks(page.read_text()):
        if block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
            for words in commands(block.code):
                check_command(words, tmp_path)


@pytest.mark.parametrize("page", of("yaml", slow=False))
def test_yaml_blocks_parse(page: Path):
    for block in blocks(page.read_text()):
        if block.language == "yaml":
            OmegaConf.create(block.code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    assert not dead_links(page, page.read_text())


def example_parameters() -> list[object]:
    parameters = []
    for path in EXAMPLES:
        found = _DIRECTIVE.search(path.read_text())
        slow, arguments = (found[1] is not None, shlex.split(found[2])) if found else (False, [])
        parameters.append(pytest.param(path, arguments, id=path.name, marks=[pytest.mark.slow] if slow else []))
    return parameters


@pytest.mark.parametrize("path, arguments", example_parameters())
def test_example_runs(path: Path, arguments: list[str], tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, str(path), *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{path.name} {arguments}\n{result.stdout}\n{result.stderr}"


PAGE = """# A page
```python
x = 1
```
<!-- slow -->
```python
x += 1
```
```bash
$ make test \\
    PYTHON=python3  # a comment

bayesmeta list
```
"""


def test_blocks_are_found():
    first, second, shell = blocks(PAGE)
    assert (first.language, first.code, first.line, first.slow) == ("python", "x = 1\n", 3, False)
    assert (second.code, second.line, second.slow) == ("x += 1\n", 7, True)
    assert commands(shell.code) == [["make", "test", "PYTHON=python3"], ["bayesmeta", "list"]]


def test_broken_block_is_found_at_its_line():
    with pytest.raises(ZeroDivisionError) as error:
        run_python("page.md", blocks(PAGE + "\n```python\nx -= 2\nx = 1 / x\n```\n"))
    assert error.traceback[-1].lineno == 17  # counted from 0


@pytest.mark.parametrize(
    "command, match",
    [
        ("make tset", "the Makefile has"),
        ("pip install -e '.[tests]'", "tests"),
        ("bayesmeta", "expected one of"),
        ("bayesmeta trian", "expected one of"),
        ("bayesmeta train task=point_gaol", "point_gaol"),
        ("bayesmeta train sede=1", "sede"),
    ],
)
def test_wrong_command_is_found(command: str, match: str, tmp_path: Path):
    with pytest.raises(AssertionError, match=match):
        check_command(shlex.split(command), tmp_path)


@pytest.mark.parametrize("command", ["make test PYTHON=python3", "pip install -e '.[test,dev]'", "cd bayesmeta"])
def test_right_command_passes(command: str, tmp_path: Path):
    check_command(shlex.split(command), tmp_path)


def test_dead_link_is_found():
    page = ROOT / "docs" / "index.md"
    assert dead_links(page, "[a](../README.md) [b](gone.md#x) [c](https://gone.org) [d](#here)") == ["gone.md"]
