"""The folder of a run: emptied if it is one, and else left alone."""

import pytest

from cwd.errors import CwdError
from tools.chaos_run.__main__ import PLAN, make_empty


def test_only_what_a_run_has_left_is_removed(tmp_path):
    folder = tmp_path / "run" / "chaos"
    make_empty(folder)
    make_empty(folder)
    (folder / PLAN).write_text("")
    (folder / "keys").mkdir()
    make_empty(folder)
    assert folder.is_dir() and not any(folder.iterdir())
    (folder / "thesis.tex").write_text("")
    with pytest.raises(CwdError, match="no run has left"):
        make_empty(folder)
    assert (folder / "thesis.tex").exists()
