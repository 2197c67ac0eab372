"""Token files: real ones where they are, made-up ones where not, and clear words for bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cwd.errors import CwdError
from cwd.workload.lengths import CLS, SEP, data_folder, load_texts, read_texts, synthetic_texts

ROOT = Path(__file__).resolve().parents[2]


def test_empty_texts_are_dropped(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens_a.npz", lengths=[3, 2, 4], ids=np.array([101, 7, 102, 101, 102, 101, 8, 9, 102], "u2"),
             offsets=[0, 3, 5, 9])
    texts = load_texts(tmp_path)
    assert texts.lengths.tolist() == [3, 4]
    assert texts.text(1, 512).tolist() == [101, 8, 9, 102]
    assert texts.text(1, 3).tolist() == [101, 8, 102]
    assert texts.source == "tokens_a.npz"


def test_synthetic_when_there_is_nothing(tmp_path: Path) -> None:
    texts = load_texts(tmp_path)
    assert texts.source == "synthetic" and len(texts) == 2000
    assert (texts.ids[texts.offsets[:-1]] == CLS).all() and (texts.ids[texts.offsets[1:] - 1] == SEP).all()
    assert texts.lengths.min() >= 4 and 20 < np.median(texts.lengths) < 40
    assert synthetic_texts().ids.tobytes() == texts.ids.tobytes()


@pytest.mark.parametrize("content", [{"ids": [1]}, {"ids": [1, 2], "offsets": [0, 5]}, {"ids": [1.5], "offsets": [0, 1]}])
def test_bad_files(tmp_path: Path, content: dict[str, list[int]]) -> None:
    path = tmp_path / "tokens_bad.npz"
    np.savez(path, **content)
    with pytest.raises(CwdError, match=r"tokens_bad\.npz"):
        read_texts(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(CwdError, match=r"tokens_bad\.npz"):
        read_texts(path)


def test_real_texts() -> None:
    folder = data_folder(ROOT.parent / "shared" / "traces")
    if folder is None:
        pytest.skip("no public data here: CWD_DATA is not set and ../shared/traces is not there")
    texts = load_texts(folder)
    assert texts.lengths.min() > 2 and texts.lengths.max() <= 512
    assert (texts.ids[texts.offsets[:-1]] == CLS).all() and (texts.ids[texts.offsets[1:] - 1] == SEP).all()
