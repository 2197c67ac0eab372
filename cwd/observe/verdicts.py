"""What a code means for whoever counts: which outcome it is, and how it is called in a label."""

from __future__ import annotations

import numpy as np

from cwd.errors import Code, Refused, request_error

#: every request has exactly one; the column of a model's row (`counts.MODEL_FIELDS`) has the same name
OUTCOMES = ("in_time", "late", "refused", "cancelled", "at_fault", "failed")
IN_TIME, LATE, REFUSED, CANCELLED, AT_FAULT, FAILED = range(6)
#: codes are below it
CODES = 1024
#: codes that end a request: verdicts, and faults of the request itself
REPLY_CODES = tuple(code for code in Code if code < 300 and code != Code.CONTROLLER_LOST)


def outcome_of(code: int) -> int:
    """The outcome of one reply."""
    if code == Code.OK:
        return IN_TIME
    if code == Code.DEADLINE_MISSED:
        return LATE
    if code == Code.CANCELLED:
        return CANCELLED
    if code not in Code._value2member_map_:
        return FAILED
    if isinstance(request_error(code), Refused):
        return REFUSED
    return AT_FAULT if 200 <= code < 400 else FAILED


#: i8[CODES]: `outcome_of` as a table
OUTCOME = np.array([outcome_of(code) for code in range(CODES)], np.int64)


def label_of(code: int) -> str:
    """`deadline_expired`; a code that this version does not know is `code_987`."""
    return Code(code).name.lower() if code in Code._value2member_map_ else f"code_{code}"
