"""What each reason not to answer is in HTTP: a status, a body of one JSON object with `error`, and when to come back.

503 says that the request was sound and cannot be served in time, or not now; there is no 504: a deadline that cannot be
met is known before it passes. `Retry-After` stands only where coming back helps and the controller said when, or where no
controller is there: then after how long one will have been looked for everywhere.
"""

from __future__ import annotations

import json

from cwd.errors import BadRequest, Code, CwdError, DeadlineMissed, ExecutionFailed, ProtocolError, RequestError
from cwd.units import NS_PER_MS, NS_PER_S, NS_PER_US, format_duration

Header = tuple[bytes, bytes]

_JSON = (b"content-type", b"application/json")
#: codes of faulty requests that are no 400
_STATUS = {
    Code.UNKNOWN_MODEL: 404, Code.MODEL_NOT_READY: 503, Code.TOO_LARGE: 413, Code.REGISTRY_FULL: 503, Code.NOT_HERE: 503,
}
#: refusals whose earliest time is that of an answer
_OF_DEADLINES = (Code.DEADLINE_UNREACHABLE, Code.DEADLINE_EXPIRED)


def check_in_time(name: str, began_ns: int, slo_ns: int, now_ns: int) -> None:
    """Raise `DeadlineMissed` for an answer that is ready only now: the loop was busy with others' answers."""
    if (late_ns := now_ns - began_ns - slo_ns) > 0:
        raise DeadlineMissed(f"{name}: the answer was ready {format_duration(late_ns)} after the timeout of "
                             f"{format_duration(slo_ns)}")


def status_of(error: CwdError) -> int:
    """The HTTP status of an error."""
    if error.code in _STATUS:
        return _STATUS[error.code]
    if isinstance(error, (ExecutionFailed, ProtocolError)):
        return 500
    # what is not the request's own fault: refusals, lost controllers, answers that came too late
    return 503 if isinstance(error, RequestError) and not isinstance(error, BadRequest) else 400


def retry_after_ns(error: CwdError, slo_ns: int) -> int:
    """After how long the same request, with the same SLO, could be answered if nothing else came; 0 if nobody knows.

    The controller says when it could have answered this one; what that misses the SLO by is how long to wait. For other
    reasons than a deadline it says how long to wait. An SLO below the model's own execution time is never met, so then
    there is nothing to wait for.
    """
    if not isinstance(error, RequestError) or not error.earliest_ns or error.code == Code.SLO_BELOW_EXECUTION:
        return 0
    return max(error.earliest_ns - (slo_ns if error.code in _OF_DEADLINES else 0), 1)


def error_answer(error: CwdError, slo_ns: int = 0) -> tuple[int, list[Header], bytes]:
    """(status, headers, body)."""
    facts: dict[str, object] = {"error": error.text, "code": error.code.name}
    headers = [_JSON]
    if isinstance(error, RequestError) and error.earliest_ns:
        facts["earliest_us"] = -(-error.earliest_ns // NS_PER_US)
    if wait_ns := retry_after_ns(error, slo_ns):
        # the standard one counts whole seconds; the other is what clients of other services read
        headers.append((b"retry-after", b"%d" % -(-wait_ns // NS_PER_S)))
        headers.append((b"retry-after-ms", b"%d" % -(-wait_ns // NS_PER_MS)))
    return status_of(error), headers, json.dumps(facts).encode()
