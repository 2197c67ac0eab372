"""The capabilities that a device tells in HELLO: one map, the same for every backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from cwd.worker import residency as rs

#: Hash of a program or of an image, in bytes.
HASH_BYTES = 16


def caps_of(
    *,
    kind: str,
    device: str,
    pages: int,
    page_bytes: int,
    agenda_max: int,
    prepares: bool,
    programs: list[bytes],
    images: list[bytes] | bool,
    resident: list[tuple[bytes, bytes]],
) -> dict[str, Any]:
    """The map; `programs` that are built, `images` in the host store (True: any), `resident` (image, program) pairs."""
    return {
        "kind": kind,
        "device": device,
        "gpus": 1,
        "page_bytes": page_bytes,
        "pages_total": pages,
        "lanes": ["exec", "load"],
        "agenda_max": agenda_max,
        "prepares": prepares,
        "programs": b"".join(programs),
        "images": images if isinstance(images, bool) else b"".join(images),
        "resident": b"".join(image + program for image, program in resident),
    }


def images_resident(residency: rs.Residency, device: int) -> list[tuple[bytes, int]]:
    """(image hash, the host's number of its program) of what could be executed or adopted."""
    rows = residency.residents[device]
    usable = rows[np.isin(rows["state"], (rs.READY, rs.ORPHAN))]
    return [(image_bytes(row["image_low"], row["image_high"]), int(row["program"])) for row in usable]


def image_bytes(low: int, high: int) -> bytes:
    """The 16 bytes of a hash whose halves an ACTION or RESIDENT holds."""
    return int(low).to_bytes(8, "little", signed=True) + int(high).to_bytes(8, "little", signed=True)
