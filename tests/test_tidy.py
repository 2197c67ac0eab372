"""Style as a failing test: who may import whom, what the core must not use, how long files and functions may grow.

The layering is that of the design: a package may import the packages named for it below and nothing else of cwd.
Exceptions are listed by name with the reason beside them, so that the list is the place to argue.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "cwd").rglob("*.py"))
SCRIPTS = sorted(path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py"))

_BASE = ("cwd", "cwd.errors", "cwd.units", "cwd.config", "cwd.settings")
_HOSTS = (*_BASE, "cwd.jit", "cwd.tables", "cwd.core", "cwd.wire", "cwd.net")
#: module prefix -> prefixes that it may import (itself included implicitly); the longest matching prefix decides
LAYERS: dict[str, tuple[str, ...]] = {
    "cwd.errors": (),
    "cwd.units": ("cwd.errors",),
    "cwd.config": ("cwd.errors", "cwd.units"),
    "cwd.settings": ("cwd.errors", "cwd.units"),
    "cwd.jit": ("cwd.errors", "cwd.units"),
    "cwd.tables": (),
    "cwd.wire": (*_BASE, "cwd.jit"),
    "cwd.net": (*_BASE, "cwd.jit", "cwd.tables", "cwd.wire"),
    "cwd.config": _BASE,
    "cwd.client": (*_BASE, "cwd.config", "cwd.wire", "cwd.net"),
    "cwd.core": ("cwd.errors", "cwd.units", "cwd.jit", "cwd.tables"),
    "cwd.models": (*_BASE, "cwd.jit"),
    "cwd.controller": (*_HOSTS, "cwd.models", "cwd.observe"),
    # whoever looks at a controller reads its log, and knows nothing of its insides
    "cwd.observe": (*_BASE, "cwd.controller.telemetry", "cwd.controller.record", "cwd.wire", "cwd.net.sockets"),
    "cwd.worker.agenda": ("cwd.errors", "cwd.units", "cwd.jit", "cwd.tables"),
    "cwd.worker.residency": ("cwd.errors", "cwd.units", "cwd.jit", "cwd.tables"),
    "cwd.worker.rules": ("cwd.errors", "cwd.jit", "cwd.worker.agenda", "cwd.worker.residency"),
    # programs are built from models/; of the core the worker sees nothing
    "cwd.worker": (*_BASE, "cwd.jit", "cwd.tables", "cwd.wire", "cwd.net", "cwd.models"),
    # the devices' rules are the workers'; no clock, no socket
    "cwd.sim": (*_BASE, "cwd.jit", "cwd.tables", "cwd.core", "cwd.worker.agenda", "cwd.worker.residency",
                "cwd.worker.rules", "cwd.workload.traces", "cwd.workload.arrivals", "cwd.workload.population"),
    # a library over the client, for whoever answers applications
    "cwd.selection": (*_BASE, "cwd.wire", "cwd.net", "cwd.client"),
    # one more client of the controller, and a daemon that tells its supervisor; its histograms have the controller's bounds
    "cwd.gateway": (*_BASE, "cwd.client", "cwd.selection", "cwd.wire", "cwd.net.notify", "cwd.observe.histogram"),
    # a replay is a client that also reads the controller's log
    "cwd.workload": (*_BASE, "cwd.client", "cwd.wire.messages", "cwd.controller.telemetry", "cwd.controller.record",
                     "cwd.controller.config"),
}
#: what brings whole systems up, measures them or is the command itself: everything below cli, but never cli
TOP = ("cwd", "cwd.cluster", "cwd.compile", "cwd.bench", "cwd.cli", "cwd.__main__")
#: the only places where torch may be imported
TORCH = ("cwd.worker.backends.cpu", "cwd.worker.backends.gpu", "cwd.models", "cwd.bench")

#: what the core may import from outside cwd; so no time, random, os, threading or logging
CORE_IMPORTS = {"__future__", "collections", "dataclasses", "enum", "numba", "numpy", "typing"}
#: their last bits differ between compiled and plain mode, or they allocate inside a kernel
CORE_BANNED_CALLS = {
    "sum", "prod", "mean", "std", "var", "median", "percentile", "quantile", "dot", "cumsum", "average", "einsum",
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "power", "pow", "sqrt", "sin", "cos", "tan", "tanh",
}

#: modules of the core without kernels of the scheduler, and why the rules above are not for them
CORE_EXEMPT = {
    "cwd.core.check": "plain Python for tests; it changes nothing and counts with numpy",
}

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
#: aim at 120; a line past this has to go
LINE_LENGTH_MAX = 132
#: functions that were longer than the limit when it came, with the reason; never add one for convenience
LONG_FUNCTIONS: dict[str, str] = {}
#: modules that may print to stdout: their output is the product
PRINTING = ("cwd.cli", "cwd.bench")

#: words that must not stand in the project; put together here so that this file does not hold them
BANNED_WORDS = tuple(a + b for a, b in (
    ("TO", "DO"), ("FIX", "ME"), ("XX", "X:"), ("index", "-url"), ("--find", "-links"), ("pypi.", "org"),
    ("download.pytorch", ".org"), ("/wor", "k/"), ("pickle", ".load"), ("fast", "math=True"),
))


def module_name(path: pathlib.Path) -> str:
    """`cwd/net/clock.py` -> `cwd.net.clock`; a package's `__init__` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, package: str) -> set[str]:
    """Every module that a file imports, anywhere in it; `from cwd.net import clock` counts as `cwd.net.clock`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *([base] if base else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Is `name` one of the modules, or inside (or a name of) one of them? `cwd` itself matches exactly."""
    return any(name == prefix or (prefix != "cwd" and name.startswith(prefix + ".")) for prefix in prefixes)


def layering_faults(module: str, imported: set[str]) -> list[str]:
    """Imports that the layering forbids for `module`."""
    faults = []
    ours = sorted(name for name in imported if name == "cwd" or name.startswith("cwd."))
    top = within(module, TOP)
    rule = max((prefix for prefix in LAYERS if within(module, (prefix,))), key=len, default=None)
    if rule is None and not top:
        return [f"{module}: no layer is defined for it"]
    for name in ours:
        # `from cwd import LocalCluster` is a name of the root package, `from cwd import net` is a module
        target = name if within(name, (*LAYERS, *TOP[1:])) else "cwd"
        if within(name, ("cwd.cli",)) and not within(module, ("cwd.cli", "cwd.__main__")):
            faults.append(f"{module} imports {name}: nothing imports the command line")
        elif not top and not within(target, (*LAYERS[rule], rule)):
            faults.append(f"{module} imports {name}")
    outside = {name.split(".")[0] for name in imported}
    if "torch" in outside and not within(module, TORCH):
        faults.append(f"{module} imports torch")
    if "tools" in outside:
        faults.append(f"{module} imports tools")
    if within(module, ("cwd.core",)) and module not in CORE_EXEMPT:
        faults += [f"{module} imports {name}" for name in sorted(outside - CORE_IMPORTS - {"cwd"})]
    return faults


def core_faults(tree: ast.AST) -> list[str]:
    """Calls inside the core whose results differ between compiled and plain mode, and ways around the one decorator."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CORE_BANNED_CALLS:
            faults.append(f"line {node.lineno}: {node.func.attr}()")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            faults.append(f"line {node.lineno}: **")
    return faults


def habits_faults(tree: ast.AST, module: str) -> list[str]:
    """Bare excepts, prints outside the command line, numba's own decorators outside cwd.jit."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"line {node.lineno}: bare except")
        if prints(node) and not within(module, PRINTING):
            faults.append(f"line {node.lineno}: print")
        if module != "cwd.jit":
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in ("njit", "jit", "vectorize", "guvectorize") and not is_cwd_jit(node):
                faults.append(f"line {node.lineno}: {name} outside cwd.jit")
    return faults


def prints(node: ast.AST) -> bool:
    """Is this a `print` to stdout, which belongs to the command line alone?"""
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            and not any(word.arg == "file" for word in node.keywords))


def is_cwd_jit(node: ast.AST) -> bool:
    """Is this the module `cwd.jit` (or a plain name bound to it), not numba's decorator?"""
    return isinstance(node, ast.Name) and node.id == "jit" or (
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cwd")


def long_functions(tree: ast.AST) -> list[tuple[str, int]]:
    """(name, lines) of the functions past the limit; signature, docstring and blank lines count."""
    return [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX]


def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_layering() -> None:
    faults = []
    for path in SOURCES:
        module = module_name(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        faults += layering_faults(module, imports_of(parsed(path), package))
    assert not faults, "\n".join(faults)


def test_core_keeps_to_exact_arithmetic() -> None:
    faults = [f"{module_name(path)} {fault}" for path in SOURCES if within(module_name(path), ("cwd.core",))
              and module_name(path) not in CORE_EXEMPT for fault in core_faults(parsed(path))]
    assert not faults, "\n".join(faults)


def test_habits() -> None:
    faults = [f"{module_name(path)} {fault}" for path in SOURCES
              for fault in habits_faults(parsed(path), module_name(path))]
    assert not faults, "\n".join(faults)


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES + SCRIPTS}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    found = {f"{path.relative_to(ROOT)}:{name}": lines for path in SOURCES + SCRIPTS
             for name, lines in long_functions(parsed(path))}
    assert {name: lines for name, lines in found.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(found), "an exemption that is no longer needed"


def test_lines_and_words() -> None:
    faults = []
    files = SOURCES + SCRIPTS + [path for pattern in ("tools/*", ".ci/*", "*.md", "*.cfg", "*.toml", "proto_spec/*.md",
                                                      "systemd/*") for path in sorted(ROOT.glob(pattern))
                                 if path.is_file() and path.suffix != ".py"]
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}"
            if path.suffix == ".py" and len(line) > LINE_LENGTH_MAX:
                faults.append(f"{where}: {len(line)} characters")
            faults += [f"{where}: {word}" for word in BANNED_WORDS if word in line]
    assert not faults, "\n".join(faults)


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them, and they their helpers, by their bare names."""
    places: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name not in ("__init__.py", "conftest.py"):
            places.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in SOURCES + SCRIPTS
              if path.name != "conftest.py" and not (ast.get_docstring(parsed(path)) or "").strip()
              and not (path.name == "__init__.py" and path.is_relative_to(ROOT / "tests"))]
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize("statement", ["import cwd", "import cwd.client", "import cwd; cwd.__version__"])
def test_thin_client_stays_thin(statement: str) -> None:
    code = f"{statement}; import sys; print(*sorted({{'torch', 'numba', 'click', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_checks_can_fail() -> None:
    """Each check finds its own bad sample."""
    core = imports_of(ast.parse("import time\nfrom cwd.net import clock"), "cwd.core")
    assert layering_faults("cwd.core.engine", core) == [
        "cwd.core.engine imports cwd.net.clock", "cwd.core.engine imports time"]
    assert layering_faults("cwd.net.clock", imports_of(ast.parse("from ..cli import main"), "cwd.net"))
    assert layering_faults("cwd.worker.lanes", imports_of(ast.parse("from cwd.core import engine"), "cwd.worker"))
    assert layering_faults("cwd.client.blocking", {"torch"})
    assert layering_faults("cwd.novelty", set())
    assert not layering_faults("cwd.worker.agenda", {"cwd.tables", "cwd.errors.Code"})
    assert core_faults(ast.parse("x = np.sum(y) ** 2"))
    assert len(habits_faults(ast.parse("try:\n    print(1)\nexcept:\n    pass"), "cwd.net.clock")) == 2
    assert habits_faults(ast.parse("@numba.njit\ndef f(): pass"), "cwd.core.engine")
    assert long_functions(ast.parse("def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX))
