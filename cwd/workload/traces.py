"""Read recorded workloads in the form in which people have them: counts per minute, or one line per request.

Three formats, told apart by their first line: Azure Functions 2019 (HashOwner, HashApp, HashFunction, Trigger, then one
column a minute), Azure LLM 2023 (TIMESTAMP, ContextTokens, GeneratedTokens), and plain lists of one time a line (seconds
or ISO 8601). Each may be gzipped. A file that is not what it says raises `CwdError` with its path and line number.
Knows nothing of models, rates or sockets: arrivals.py makes requests of what is read here.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cwd.errors import Code, CwdError
from cwd.units import NS_PER_S

Int64s = NDArray[np.int64]

FUNCTIONS_HEADER = ("HashOwner", "HashApp", "HashFunction", "Trigger")
LLM_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
NS_PER_MINUTE = 60 * NS_PER_S
TIME_MAX_NS = (1 << 63) - 1

_COUNTS = re.compile(r"\d{1,9}(?:,\d{1,9})*")
_SECONDS = re.compile(r"\d{1,11}(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?")
_ISO = re.compile(r"(?:19[7-9]|2[01]\d)\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(Z|\+00:00)?")


@dataclass(frozen=True)
class CountTrace:
    """How often each function was called in each minute."""

    #: int64 (functions, minutes)
    counts: Int64s
    #: HashFunction of each row
    names: tuple[str, ...]
    #: the label of the first column: the minute of the day
    first_minute: int

    @property
    def minutes(self) -> int:
        return self.counts.shape[1]

    def slice(self, begin: int, end: int) -> CountTrace:
        """Minutes [begin, end) by their labels; functions without a call in them stay (their rank is their row's)."""
        low, high = begin - self.first_minute, end - self.first_minute
        if not 0 <= low < high <= self.minutes:
            raise CwdError(f"minutes {begin}..{end} are not in the trace, which has "
                           f"{self.first_minute}..{self.first_minute + self.minutes}", code=Code.BAD_ARGUMENT)
        return CountTrace(self.counts[:, low:high], self.names, begin)


@dataclass(frozen=True)
class StampTrace:
    """When each request came, from the first one on."""

    #: int64 (requests,), ascending, the first is 0
    at_ns: Int64s
    #: int64 (requests,): context tokens of each request; None if the trace has no such column
    tokens: Int64s | None = None

    @property
    def minutes(self) -> int:
        return int(self.at_ns[-1] // NS_PER_MINUTE) + 1

    def slice(self, begin: int, end: int) -> StampTrace:
        """The requests of minutes [begin, end) since the first request, times from `begin` on."""
        kept = (self.at_ns >= begin * NS_PER_MINUTE) & (self.at_ns < end * NS_PER_MINUTE)
        if begin < 0 or not kept.any():
            raise CwdError(f"minutes {begin}..{end} hold no request: the trace has 0..{self.minutes}",
                           code=Code.BAD_ARGUMENT)
        return StampTrace(self.at_ns[kept] - begin * NS_PER_MINUTE, None if self.tokens is None else self.tokens[kept])


Trace = CountTrace | StampTrace


def read_trace(path: str | Path) -> Trace:
    """The trace in a file, whichever of the three formats it has; raises `CwdError` naming the file and the line."""
    path = Path(path)
    lines = _lines(path)
    number, first = next(lines, (1, ""))
    fields = tuple(first.split(","))
    if fields[: len(FUNCTIONS_HEADER)] == FUNCTIONS_HEADER:
        return _read_functions(path, fields, lines)
    if fields == LLM_HEADER:
        return _read_llm(path, lines)
    if len(fields) > 1:
        raise _fault(path, number, f"the header is neither {','.join(FUNCTIONS_HEADER)},<minutes> "
                                   f"nor {','.join(LLM_HEADER)}")
    return _read_stamps(path, (number, first), lines)


def _fault(path: Path, line: int, text: str) -> CwdError:
    return CwdError(f"{path}:{line}: {text}", code=Code.BAD_ARGUMENT)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end); reading errors of file, gzip and encoding become `CwdError`."""
    number = 0
    try:
        with open(path, "rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        opener = gzip.open if packed else open
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                number += 1
                yield number, line.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _fault(path, number + 1, f"the gzip stream is damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise _fault(path, number + 1, "not text (UTF-8)") from error
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from error


def _read_functions(path: Path, header: tuple[str, ...], lines: Iterator[tuple[int, str]]) -> CountTrace:
    labels = header[len(FUNCTIONS_HEADER):]
    if not labels or not all(label.isdecimal() and len(label) < 9 for label in labels):
        raise _fault(path, 1, "the columns after Trigger must be minutes")
    first = int(labels[0])
    if [int(label) for label in labels] != list(range(first, first + len(labels))):
        raise _fault(path, 1, "the minutes in the header are not consecutive")
    names, rows = [], []
    for number, line in lines:
        if not line:
            continue
        fields = line.split(",", len(FUNCTIONS_HEADER))
        if len(fields) <= len(FUNCTIONS_HEADER) or not _COUNTS.fullmatch(fields[-1]):
            raise _fault(path, number, f"wanted {len(FUNCTIONS_HEADER)} names and {len(labels)} counts")
        row = np.fromstring(fields[-1], dtype=np.int64, sep=",")
        if len(row) != len(labels):
            raise _fault(path, number, f"{len(row)} counts, but the header has {len(labels)} minutes")
        names.append(fields[2])
        rows.append(row)
    if not rows:
        raise _fault(path, 1, "a header and no function")
    return CountTrace(np.stack(rows), tuple(names), first)


def _read_llm(path: Path, lines: Iterator[tuple[int, str]]) -> StampTrace:
    at_ns, tokens = [], []
    for number, line in lines:
        if not line:
            continue
        fields = line.split(",")
        if len(fields) != len(LLM_HEADER) or not all(text.isdecimal() and len(text) < 10 for text in fields[1:]):
            raise _fault(path, number, "wanted a time and two token counts")
        at_ns.append(_iso_ns(path, number, fields[0]))
        tokens.append(int(fields[1]))
    if not at_ns:
        raise _fault(path, 1, "a header and no request")
    return _stamps(at_ns, tokens)


def _read_stamps(path: Path, first: tuple[int, str], lines: Iterator[tuple[int, str]]) -> StampTrace:
    at_ns, number = [], 1
    for number, line in itertools.chain([first], lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if _SECONDS.fullmatch(text):
            at_ns.append(int(Decimal(text) * NS_PER_S))
            if at_ns[-1] > TIME_MAX_NS:
                raise _fault(path, number, f"{text[:40]} seconds is beyond what can be counted")
        else:
            at_ns.append(_iso_ns(path, number, text))
    if not at_ns:
        raise _fault(path, number, "no time in the file")
    return _stamps(at_ns, None)


def _iso_ns(path: Path, number: int, text: str) -> int:
    match = _ISO.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        return int(np.datetime64(text.removesuffix(match[1] or "").replace(" ", "T"), "ns").astype(np.int64))
    except ValueError as error:
        raise _fault(path, number, f"{text[:40]!r} is neither seconds nor a time such as 2023-11-16 18:15:46.68 "
                                   "(UTC)") from error


def _stamps(at_ns: list[int], tokens: list[int] | None) -> StampTrace:
    """Sorted by time and counted from the first; equal times keep the file's order."""
    times = np.array(at_ns, np.int64)
    order = np.argsort(times, kind="stable")
    sizes = None if tokens is None else np.array(tokens, np.int64)[order]
    return StampTrace(times[order] - times[order[0]], sizes)
