"""Reading traces: the three formats, gzip, slices, and one clear line with the line number for every bad file."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cwd.errors import CwdError
from cwd.workload.traces import NS_PER_MINUTE, CountTrace, StampTrace, read_trace

FUNCTIONS = "HashOwner,HashApp,HashFunction,Trigger,480,481,482\na,b,f1,http,1,0,3\na,b,f2,timer,0,0,1\n"
LLM = ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
       "2023-11-16 18:15:50.9951690,396,109\n")


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_functions(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, FUNCTIONS))
    assert isinstance(trace, CountTrace)
    assert trace.counts.tolist() == [[1, 0, 3], [0, 0, 1]]
    assert trace.names == ("f1", "f2") and trace.first_minute == 480
    part = trace.slice(481, 483)
    assert part.counts.tolist() == [[0, 3], [0, 1]] and part.first_minute == 481
    with pytest.raises(CwdError, match=r"minutes 400\.\.482 are not in the trace, which has 480\.\.483"):
        trace.slice(400, 482)


def test_gzip_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "misleading.csv"
    path.write_bytes(gzip.compress(FUNCTIONS.encode()))
    trace = read_trace(path)
    assert isinstance(trace, CountTrace) and trace.counts.sum() == 5


def test_llm(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, LLM))
    assert isinstance(trace, StampTrace) and trace.tokens is not None
    assert trace.at_ns.tolist() == [0, 4_314_579_000]
    assert trace.tokens.tolist() == [374, 396]


@pytest.mark.parametrize(("text", "wanted"), [
    ("0.5\n2\n1.000000001\n", [0, 500_000_001, 1_500_000_000]),
    ("# comment\n\n1e3\n1001\n", [0, 1_000_000_000]),
    ("2024-01-01T00:00:00Z\n2024-01-01T00:00:01.25Z\n", [0, 1_250_000_000]),
])
def test_stamps(tmp_path: Path, text: str, wanted: list[int]) -> None:
    trace = read_trace(written(tmp_path, text))
    assert isinstance(trace, StampTrace)
    assert trace.at_ns.tolist() == wanted and trace.tokens is None


def test_stamps_slice(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "\n".join(str(30 * index) for index in range(10))))
    part = trace.slice(1, 3)
    assert part.at_ns.tolist() == [0, NS_PER_MINUTE // 2, NS_PER_MINUTE, NS_PER_MINUTE * 3 // 2]
    with pytest.raises(CwdError, match="hold no request"):
        trace.slice(50, 60)


@pytest.mark.parametrize(("text", "line", "says"), [
    (FUNCTIONS + "a,b,f3,http,1,x,3\n", 4, "wanted 4 names and 3 counts"),
    (FUNCTIONS + "a,b,f3,http,1,2\n", 4, "2 counts, but the header has 3 minutes"),
    (FUNCTIONS + "a,b,f3,http,1,-2,0\n", 4, "wanted 4 names"),
    (FUNCTIONS + "a,b\n", 4, "wanted 4 names"),
    (FUNCTIONS.replace("481", "490"), 1, "not consecutive"),
    (FUNCTIONS.replace("481", "noon"), 1, "must be minutes"),
    (FUNCTIONS.splitlines()[0] + "\n", 1, "no function"),
    (LLM + "2023-11-16 18:15:46,374\n", 4, "wanted a time and two token counts"),
    (LLM + "2023-13-16 18:15:46,374,44\n", 4, "neither seconds nor a time"),
    (LLM.splitlines()[0], 1, "no request"),
    ("1.0\n2.0\nthree\n", 3, "'three' is neither seconds"),
    ("1.0\n-2.0\n", 2, "neither seconds"),
    ("1\n9e98\n", 2, "beyond what can be counted"),
    ("9999-01-01 00:00:00\n", 1, "neither seconds"),
    ("nan\n", 1, "neither seconds"),
    ("", 1, "no time in the file"),
    ("a,b\n1,2\n", 1, "the header is neither"),
])
def test_bad_files_name_the_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(CwdError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_and_binary_and_missing(tmp_path: Path) -> None:
    whole = gzip.compress((FUNCTIONS * 1000).encode())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CwdError, match=r"cut\.gz:\d+: "):
        read_trace(tmp_path / "cut.gz")
    (tmp_path / "flip.gz").write_bytes(whole[:30] + b"\xff\xff\xff\xff" + whole[34:])
    with pytest.raises(CwdError, match=r"flip\.gz"):
        read_trace(tmp_path / "flip.gz")
    (tmp_path / "binary").write_bytes(b"1.0\n\xff\xfe\x00")
    with pytest.raises(CwdError, match=r"binary:\d+: not text"):
        read_trace(tmp_path / "binary")
    with pytest.raises(CwdError, match="No such file"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(CwdError, match="directory"):
        read_trace(tmp_path)


def test_random_bytes_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    source = (FUNCTIONS.encode(), LLM.encode(), b"1.5\n2.5\n2024-01-01 00:00:00\n", gzip.compress(FUNCTIONS.encode()))
    for turn in range(400):
        data = bytearray(source[turn % len(source)])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path = tmp_path / "mutated"
        path.write_bytes(bytes(data))
        try:
            read_trace(path)
        except CwdError as error:
            assert "\n" not in str(error)
