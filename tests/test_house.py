"""The house rules of the code base, read from the source: see the first lines of each test."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ptools"
HEAVY = {"torch", "numpy", "cv2", "lmdb", "PIL", "tensorboard", "torchinfo"}
ALLOWED_AT_THE_TOP = {"ptools", "tests", "examples", "pyproject.toml", "README.md", "CHANGELOG.md"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli", "program"}
FLOOR_1 = ["console", "choice", "errors", "files", "target", "usercode", "zoo"]
LIGHT = [*sorted((PACKAGE / "cli").glob("*.py")), *(PACKAGE / f"{name}.py" for name in FLOOR_1)]


def imports(path: Path, nodes: Iterator[ast.AST] | list[ast.stmt] | None = None) -> set[str]:
    """The dotted names that a file imports, relative ones made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in nodes or ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports_when_loaded(path: Path) -> set[str]:
    """The same, but only what runs on import: no function bodies, no TYPE_CHECKING blocks."""
    return imports(path, list(_running(ast.parse(path.read_text(encoding="utf-8")).body)))


def _running(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _running(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for block in ("body", "orelse", "finalbody"):
                yield from _running(getattr(node, block, []))


def rooms_in(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "ptools" and len(part) > 1} & ROOMS


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_arrows_only_go_down(path: Path) -> None:
    """Rooms never import each other nor the command line; floor 1 imports no room."""
    names = imports(path)
    floor = path.relative_to(PACKAGE).parts[0]
    if floor == "cli":
        return
    assert not {name for name in names if name.startswith("ptools.cli")} or path.stem == "__main__"
    if path.stem not in ("__init__", "__main__") or floor in ROOMS:
        assert rooms_in(names) <= {floor}


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_only_the_command_line_knows_typer(path: Path) -> None:
    """Typer's vendored Click is private; Click itself is no dependency."""
    names = imports(path)
    tops = {name.partition(".")[0] for name in names}
    assert "click" not in tops
    assert not {name for name in names if name.startswith("typer._")}
    assert "typer" not in tops or path.parent.name == "cli"


@pytest.mark.parametrize("path", LIGHT, ids=ids)
def test_nothing_heavy_when_loaded(path: Path) -> None:
    """`ptools --help` must not wait for torch: it is imported in function bodies."""
    names = imports_when_loaded(path)
    assert not {name.partition(".")[0] for name in names} & HEAVY
    assert not rooms_in(names)


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """The tests above must be able to fail."""
    path = PACKAGE / "summary" / "example.py"
    tree = ast.parse("from ..fusion import fuse\nfrom . import tree\nimport torch.nn")
    assert imports(path, ast.walk(tree)) == {
        "ptools.fusion.fuse",
        "ptools.summary.tree",
        "torch.nn",
    }


def test_top_level_names() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    tops = {line.partition("/")[0] for line in done.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= ALLOWED_AT_THE_TOP


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy --strict ptools"],
)
def test_checkers_are_clean(command: str) -> None:
    call = [sys.executable, "-m", *command.split()]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
