"""The README's tutorial is run as it stands: its files are written, its commands executed, its Python too.

In "Serve your own model", a block with a title is a file; `sh` blocks form one shell session with what comes between
them, and `python` blocks run inside it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TIMEOUT_S = 590

_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tutorial() -> list[tuple[str, str, str]]:
    """(language, title or "", text) of every block of the tutorial, in order."""
    section = README.split("\n## Serve your own model\n")[1].split("\n## ")[0]
    return _BLOCK.findall(section)


def test_the_tutorial_has_blocks() -> None:
    kinds = [(language, bool(title)) for language, title, _ in tutorial()]
    assert kinds.count(("sh", False)) >= 5 and ("python", False) in kinds and ("python", True) in kinds


def test_links_and_commands_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"^(cwd/\S+)\s", README, re.MULTILINE):
        assert (ROOT / path).is_dir(), path


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    script = ["set -euo pipefail"]
    for language, title, text in tutorial():
        if title:
            (tmp_path / title).write_text(text)
        elif language == "sh":
            script.append(text)
        elif language == "python":
            script.append(f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n")
    # what "activate" does, which the section's text asks for before its first block
    assert ". .venv/bin/activate" in README.split("\n## Serve your own model\n")[1].split("```")[0]
    bin_folder = Path(sys.executable).parent
    # a shell without job control numbers its jobs all the same, so that `kill %1` works
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "CWD_RUN_DIR": str(tmp_path / "run"),
                   "CWD_STATE_DIR": str(tmp_path / "state")}
    # `timeout` ends the tutorial's loops even if this process is killed
    shell = subprocess.Popen(["timeout", str(TIMEOUT_S), "bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment,
                             text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             start_new_session=True)
    try:
        out, err = shell.communicate(timeout=TIMEOUT_S)
    finally:
        # the shell's own session: whatever the tutorial left running ends with it
        try:
            os.killpg(shell.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    assert shell.returncode == 0, out + err
    assert "32 answered" in out
    assert '"model_name":"scorer","model_version":"1","id":"7"' in out and "2 over HTTP" in out
    assert "shorter than the model's own execution time" in out or "no schedule meets the deadline" in out
    assert (tmp_path / "replay-report" / "report.png").stat().st_size > 20_000
