"""How cwd compiles: the one decorator `kernel`, and where its machine code is kept between processes.

This module owns every numba option. It must not know what the kernels do. numba's own cache asks whether the file of
a function changed, but not whether a callee in another file did, and it loses entries when two processes write at
once. Here a file's code is kept in a folder of its own, named by a hash of that file, of every cwd module that it
imports, however indirectly, and of the numba version, the Python version and the CPU; and writers take turns.

The folder is `$NUMBA_CACHE_DIR`, else `$CWD_CACHE_DIR/numba`, else `~/.cache/cwd/numba`. With `NUMBA_DISABLE_JIT=1` a
kernel is the plain Python function.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import llvmlite.binding
import numba
from numba import types
from numba.core import caching
from numba.extending import intrinsic

__all__ = ["JIT", "cache_dir", "inline", "intrinsic", "kernel", "lean_kernel", "source_hash", "sources"]

Function = TypeVar("Function", bound=Callable[..., Any])

#: False where NUMBA_DISABLE_JIT=1 has made kernels plain Python; then external functions are called through ctypes.
JIT = not numba.config.DISABLE_JIT

#: The folder that holds the package, so `cwd.wire.kernel` is `_ROOT/cwd/wire/kernel.py`.
_ROOT = Path(__file__).resolve().parent.parent

#: An import statement, with its lines in parentheses or after backslashes if it has such.
_IMPORT = re.compile(r"""(?:^|[;:])[ \t\f]*(
    from\b[^;\n(]*\bimport\s*\([^)]*\) |
    (?:from|import)\b(?:[^;\n\\]|\\\n)*
)""", re.MULTILINE | re.VERBOSE)
_RELATIVE = re.compile(r"\bfrom[\s\\]*\.")

#: No fastmath (both modes must agree to the last bit); division by zero is numpy's, and costs no test.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: Function) -> Function:
    """Compile `function` in nopython mode, without the GIL; from the cache, unless it was typed at a prompt."""
    return _compiled(function, {})


def lean_kernel(function: Function) -> Function:
    """As `kernel`, without numba's reference counts: for what allocates nothing and only borrows its arrays.

    numba counts references whenever an array leaves a tuple or enters a function. Measured with a tuple of 14 tables:
    ten nested calls took 975 ns, without the counts 7 ns. It costs nothing that such code needs: making an array is a
    compile error, and a returned array would not be kept alive.
    """
    return _compiled(function, {"_nrt": False})


def inline(function: Function) -> Function:
    """A kernel that its callers absorb: as a unit of its own numba would optimise its callees once more."""
    return _compiled(function, {"inline": "always"})


def inner_kernel(function: Function) -> Function:
    """As `lean_kernel`, for what only kernels call: without the entry from Python, which takes as long to compile again.

    A tuple of 20 tables is 140 words, and an entry unpacks them all. Calling it from Python crashes the process, except
    with NUMBA_DISABLE_JIT=1.
    """
    return _compiled(function, {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True})


def _compiled(function: Function, options: dict[str, Any]) -> Function:
    compiled = numba.njit(**_OPTIONS, **options)(function)
    if JIT:
        _unify_integers(compiled)
    # numba finds cached code's globals by its module's name: of a module that was never registered it finds none
    if JIT and os.path.isfile(function.__code__.co_filename) and function.__module__ in sys.modules:
        compiled._cache = _KernelCache(function)
    return compiled


def _unify_integers(compiled: Any) -> None:
    """Have calls from other kernels hand over every integer as int64.

    numba compiles a function again for each constant that it is called with (a constant has a type of its own) and for
    each width of integer. Neither makes it faster here, and together they were half of the compile time.
    """
    original = compiled.get_call_template

    def unified(args: Any, kws: Any) -> Any:
        return original(tuple(_as_int64(kind) for kind in args), {name: _as_int64(kws[name]) for name in kws})

    compiled.get_call_template = unified


def _as_int64(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.int64 if isinstance(kind, types.Integer) and kind.bitwidth < 64 else kind


def cache_dir() -> Path:
    """The folder of compiled kernels; not necessarily there yet."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    own = os.environ.get("CWD_CACHE_DIR")
    return (Path(own) if own else Path.home() / ".cache" / "cwd") / "numba"


def sources(file: Path, root: Path = _ROOT, package: str = "cwd") -> list[Path]:
    """`file` and every module of `package` (which lies in `root`) that it imports, transitively; sorted, absolute."""
    found: set[Path] = set()
    todo = [file.resolve()]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo.extend(_imports(path, root, package))
    return sorted(found)


def source_hash(file: Path, root: Path = _ROOT, package: str = "cwd") -> str:
    """Hex digest of what decides the machine code of `file`'s kernels: sources, versions, CPU."""
    digest = hashlib.sha256(_platform().encode())
    for path in sources(file, root, package):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


@functools.cache
def _imports(path: Path, root: Path, package: str) -> tuple[Path, ...]:
    """Files of `package` that the file at `path` imports itself, at any depth of its own code."""
    names: set[str] = set()
    for node in _import_statements(path.read_text(), package):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            base = _absolute(node, path, root)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    files = (_file_of(name, root) for name in names if name == package or name.startswith(package + "."))
    return tuple(sorted({file for file in files if file is not None}))


def _import_statements(text: str, package: str) -> list[ast.Import | ast.ImportFrom]:
    """What in `text` imports from `package` or relatively, and perhaps words of a string that read so: they do no harm.

    Each statement is parsed by itself: parsing whole files took half of the time in which a daemon is imported.
    """
    statements = [found[1] for found in _IMPORT.finditer(text) if package in found[1] or _RELATIVE.search(found[1])]
    try:
        trees = [ast.parse(statement) for statement in statements]
    except SyntaxError:  # prose, or a comment with a parenthesis
        trees = [ast.parse(text)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _absolute(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """The dotted name that `from X import ...` in the file at `path` starts from, relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    if not path.is_relative_to(root):
        return ""
    parts = path.relative_to(root).parts[:-node.level]
    return ".".join(parts + ((node.module,) if node.module else ()))


@functools.cache
def _file_of(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate.resolve()
    return None


@functools.cache
def _platform() -> str:
    features = llvmlite.binding.get_host_cpu_features().flatten()
    return repr((numba.__version__, llvmlite.__version__, sys.version_info[:3], _OPTIONS,
                 llvmlite.binding.get_host_cpu_name(), features, numba.config.CPU_NAME, numba.config.CPU_FEATURES))


@functools.cache
def _stem_and_hash(file: str) -> tuple[str, str]:
    """The dotted name of what the code of `file` is kept under, and its hash: asked for by each of its functions."""
    path = Path(file).resolve()
    inside = path.is_relative_to(_ROOT)
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts) if inside else path.stem, source_hash(path)


class _Locator(caching._CacheLocator):
    """Says where the code of one function is kept: a folder per file and hash."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file  # numba's warnings name it
        name, self._hash = _stem_and_hash(file)
        self._line = function.__code__.co_firstlineno
        self._path = cache_dir() / f"{name}-{self._hash}"

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:  # a read-only home: compile for this process alone, in a folder that nobody else sees
            locator._path = Path(_private_dir()) / locator._path.name
            locator.ensure_cache_path()
        return locator

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return self._hash

    def get_disambiguator(self) -> str:
        return str(self._line)


@functools.cache
def _private_dir() -> str:
    return tempfile.mkdtemp(prefix="cwd-numba-")


class _KernelCacheImpl(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar[list[type]] = [_Locator]


class _LockedFiles(caching.IndexDataCacheFile):
    """One function's index and data files, with writers taking turns.

    numba reads the index, picks a number and writes: of two processes that do so at once one loses its entry, and the
    other's entry may then name the wrong machine code.
    """

    def save(self, key: Any, data: Any) -> None:
        with open(os.path.join(self._cache_path, ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().save(key, data)


class _KernelCache(caching.FunctionCache):
    _impl_class = _KernelCacheImpl

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _LockedFiles(self._cache_path, self._impl.filename_base, stamp)
