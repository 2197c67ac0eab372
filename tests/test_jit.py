"""The cache of compiled kernels: found again by a second process, lost when anything that it was made from changes."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest

from cwd import jit

ROOT = Path(__file__).resolve().parent.parent

LEAF = """
from cwd.jit import kernel

@kernel
def leaf(x):
    return x + {number}
"""

TRUNK = """
import json, sys
from cwd.jit import JIT, kernel
from leafy import leaf

@kernel
def trunk(x):
    return leaf(x) * 2

value = trunk(1)
hits = sum(trunk.stats.cache_hits.values()) if JIT else -1
print(json.dumps([value, hits]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `p` of four files: a imports b, b imports sub.c relatively, d nothing; c imports a back (a cycle)."""
    (tmp_path / "p" / "sub").mkdir(parents=True)
    for name, text in {
        "a.py": "import os\nfrom p.b import thing\n",
        "b.py": "def late():\n    from .sub import c\n",
        "sub/__init__.py": "",
        "sub/c.py": "import p.a\nimport numpy\n",
        "d.py": "x = 1\n",
    }.items():
        (tmp_path / "p" / name).write_text(text)
    return tmp_path


def test_sources_are_transitive(package: Path) -> None:
    found = {path.relative_to(package / "p").as_posix() for path in jit.sources(package / "p/a.py", package, "p")}
    assert found == {"a.py", "b.py", "sub/__init__.py", "sub/c.py"}
    assert jit.sources(package / "p/d.py", package, "p") == [package / "p/d.py"]


@pytest.mark.parametrize("text", [
    "from p.b import thing\n", "    from .sub import c\n", "x = 1; import p.a\n", "if x: from p import b\n",
    "import os, p.a\n", "from \\\n    p import d\n", "from p import (b, d); import p.e\n",
    "from p.b import (  # one (or two)\n    thing,  # :)\n    other,\n)\n",
    "from p.b import \\\n    thing, \\\n    other\n", "from p import \\\n    (b,\n     d)\n",
])
def test_every_form_of_import_is_seen(text: str) -> None:
    assert _imported(jit._import_statements(text, "p")) == _imported(ast.walk(ast.parse(textwrap.dedent(text))))


@pytest.mark.parametrize("text", [
    "\ffrom cwd.b import c\n", "from \\\n    .b import c\n", "from os import path  # we import (\nfrom .b import c  # )\n",
    "\'\'\'\nfrom here import (\'\'\'\nfrom .b import c\nprint(1)\n",
])
def test_what_hides_an_import_does_not(text: str) -> None:
    wanted = {name for name in _imported(ast.walk(ast.parse(text))) if name.split(".")[0] in ("cwd", "")}
    assert wanted and wanted <= _imported(jit._import_statements(text, "cwd"))


def test_the_statements_found_are_the_parser_s() -> None:
    """In every file of the project."""
    for path in sorted([*ROOT.glob("cwd/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("tools/*.py")]):
        text = path.read_text()
        wanted = {name for name in _imported(ast.walk(ast.parse(text))) if name.split(".")[0] in ("cwd", "")}
        assert wanted <= _imported(jit._import_statements(text, "cwd")), path


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names, what is relative with its dots."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("edited", ["a.py", "b.py", "sub/c.py"])
def test_hash_changes_with_every_source(package: Path, edited: str) -> None:
    before = jit.source_hash(package / "p/a.py", package, "p")
    unrelated = jit.source_hash(package / "p/d.py", package, "p")
    path = package / "p" / edited
    path.write_text(path.read_text() + "\n# edited\n")
    assert jit.source_hash(package / "p/a.py", package, "p") != before
    assert jit.source_hash(package / "p/d.py", package, "p") == unrelated


def test_hash_changes_with_the_platform(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jit.source_hash(package / "p/a.py", package, "p")
    monkeypatch.setattr(jit, "_platform", lambda: "another cpu")
    assert jit.source_hash(package / "p/a.py", package, "p") != before


def test_cache_dir_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("CWD_CACHE_DIR", "/own")
    assert jit.cache_dir() == Path("/own/numba")
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "/numbas")
    assert jit.cache_dir() == Path("/numbas")


def _copy_of_cwd(tmp_path: Path, number: int) -> None:
    """A checkout with the real errors, units and jit, and two kernels in files of their own."""
    package = tmp_path / "cwd"
    package.mkdir(exist_ok=True)
    (package / "jit.py").write_text((ROOT / "cwd/jit.py").read_text())
    (package / "leafy.py").write_text(LEAF.format(number=number))
    (package / "trunk.py").write_text(TRUNK.replace("from leafy", "from cwd.leafy"))


def _run(tmp_path: Path, **env: str) -> list[int]:
    dropped = ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT", "PYTHONPATH")
    variables = {key: value for key, value in os.environ.items() if key not in dropped}
    variables |= {"CWD_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **env}
    done = subprocess.run([sys.executable, "-m", "cwd.trunk"], cwd=tmp_path, env=variables, check=False, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_second_process_loads_and_an_edited_callee_recompiles(tmp_path: Path) -> None:
    _copy_of_cwd(tmp_path, 10)
    assert _run(tmp_path) == [22, 0]
    assert _run(tmp_path) == [22, 1]
    _copy_of_cwd(tmp_path, 20)  # only the callee's file differs
    assert _run(tmp_path) == [42, 0]
    assert _run(tmp_path, NUMBA_DISABLE_JIT="1") == [42, -1]


def test_unwritable_cache_compiles_for_the_process_alone(tmp_path: Path) -> None:
    _copy_of_cwd(tmp_path, 10)
    (tmp_path / "file").write_text("")
    assert _run(tmp_path, CWD_CACHE_DIR=str(tmp_path / "file")) == [22, 0]


def test_unregistered_module_is_not_cached(tmp_path: Path) -> None:
    """numba would store such a kernel, and fail when it loads it."""
    (tmp_path / "loose.py").write_text("from cwd.jit import kernel\n\n@kernel\ndef f(x):\n    return x + 1\n")
    script = tmp_path / "script.py"
    script.write_text("import runpy\nprint(runpy.run_path('loose.py', run_name='loose')['f'](1))\n")
    variables = os.environ | {"CWD_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=variables, capture_output=True, text=True,
                              timeout=120, check=False)
        assert done.stdout == "2\n", done.stderr
