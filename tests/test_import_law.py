"""Which part of the package may import which, held by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbsync

PACKAGE = Path(nbsync.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 320
PURE = (
    "kernel/state.py",
    "kernel/output/fold.py",
    "kernel/output/lines.py",
    "kernel/output/sequence.py",
    "kernel/supervision/verdict.py",
)


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that `path` imports anywhere, and whether it does so inside a function."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_place(path)} has a relative import"
            module = str(node.module)
            # `from package import module` imports the module
            yield from ((_full_name(module, alias.name), id(node) in inside) for alias in node.names)


def _full_name(package: str, name: str) -> str:
    folder = PACKAGE.parent.joinpath(*package.split("."))
    is_module = (folder / name).is_dir() or (folder / f"{name}.py").exists()
    return f"{package}.{name}" if is_module or package == "IPython" else package


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _under(*folders: str) -> list[Path]:
    return [path for path in MODULES if _place(path).startswith(folders)]


def _ids(paths: list[Path]) -> dict[str, object]:
    return {"argvalues": paths, "ids": [_place(path) for path in paths]}


@pytest.mark.parametrize("path", **_ids(_under("errors.py", "protocol/")))
def test_errors_and_protocol_stand_alone(path: Path) -> None:
    """What both sides speak imports the standard library and dill only, and torch only when it serialises."""
    for module, inside in _imports(path):
        if module == "torch" and inside and _place(path) == "protocol/serial.py":
            continue
        assert module.split(".")[0] in {*sys.stdlib_module_names, "dill"} or _within(
            module, "nbsync.errors", "nbsync.protocol"
        ), f"imports {module}"


@pytest.mark.parametrize("path", **_ids(_under("worker/")))
def test_worker_never_imports_the_kernel_side(path: Path) -> None:
    """A worker knows nothing of the kernel's modules."""
    assert not [m for m, _ in _imports(path) if _within(m, "nbsync.kernel", "nbsync.notebook")]


@pytest.mark.parametrize("path", **_ids(_under("kernel/")))
def test_kernel_imports_the_worker_only_by_its_entry_point(path: Path) -> None:
    """One arrow goes across: the engine that forks names the worker's main module."""
    allowed = {"nbsync.worker.main"} if _place(path) == "kernel/engines/forked.py" else set()
    crossing = {m for m, _ in _imports(path) if _within(m, "nbsync.worker", "nbsync.notebook")}
    assert crossing <= allowed


@pytest.mark.parametrize("path", **_ids([path for path in MODULES if not _place(path).startswith("notebook/")]))
def test_only_notebook_knows_the_front_end(path: Path) -> None:
    """IPython and ipywidgets are imported by `notebook` alone, but for a worker's shell and what it shows."""
    allowed = {
        "worker/shell.py": ("IPython.core",),
        "worker/displays.py": ("IPython.core",),
        "worker/tracebacks.py": ("IPython.core",),
        "worker/libraries/bars.py": ("tqdm.notebook",),
    }.get(_place(path), ())
    front_end = [m for m, _ in _imports(path) if _within(m, "IPython", "ipywidgets", "ipykernel", "tqdm.notebook")]
    assert not [m for m in front_end if not _within(m, *allowed)]


@pytest.mark.parametrize("place", PURE)
def test_pure_modules_have_no_clock_thread_or_socket(place: str) -> None:
    """The reducers take times and events from outside."""
    banned = ("time", "threading", "queue", "socket", "asyncio", "select", "selectors", "subprocess")
    assert not [m for m, _ in _imports(PACKAGE / place) if _within(m, *banned)]


@pytest.mark.parametrize("path", **_ids(MODULES))
def test_modules_stay_short(path: Path) -> None:
    """No module has grown beyond what can be read in one go."""
    assert len(path.read_text().splitlines()) <= MOST_LINES


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


_HEAVY = "sorted({'torch', 'IPython', 'ipywidgets', 'numpy', 'dill', 'tqdm', 'hashlib'} & set(sys.modules))"


def test_import_is_light() -> None:
    """`import nbsync` loads nothing that takes long. (benchmarks/run.py measures the time.)"""
    code = f"import sys\nimport nbsync\nprint({_HEAVY})"
    assert _python(code).strip() == "[]"


def test_load_ext_is_light() -> None:
    """`%load_ext nbsync` loads nothing that takes long, and starts nothing."""
    code = f"""
import sys, threading
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before, threads = set(sys.modules), threading.active_count()
shell.run_line_magic("load_ext", "nbsync")
assert "distributed" in shell.magics_manager.magics["cell"]
assert threading.active_count() == threads
print([name for name in {_HEAVY} if name not in before])"""
    assert _python(code).splitlines()[-1] == "[]"


def test_public_names() -> None:
    """`nbsync.<TAB>` shows `__all__` and nothing else, and every name of it is there."""
    assert dir(nbsync) == sorted(nbsync.__all__)
    assert all(getattr(nbsync, name) is not None for name in nbsync.__all__)
    with pytest.raises(AttributeError, match="no attribute 'wrong'"):
        _ = nbsync.wrong
