"""The page images that a worker can load: built once from the repository, checked, and kept in this host's memory.

It knows files and bytes; it must not know pages, torch or actions. One thread uses it at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models.repository import Entry, Repository
from cwd.units import format_size

LOG = logging.getLogger("cwd.worker")


class HostStore:
    """Images by their 16-byte hash, within `bytes_max`; `memory` gives a u1 array for each, or raises `MemoryError`."""

    def __init__(self, repository: Repository, bytes_max: int,
                 memory: Callable[[int], np.ndarray] = lambda size: np.empty(size, np.uint8)) -> None:
        self.repository, self.bytes_max, self._memory = repository, bytes_max, memory
        self.bytes_used = 0
        #: image hash -> u1[image_bytes]; (entries are only ever added while actions run)
        self.images: dict[bytes, np.ndarray] = {}
        self._entries: dict[bytes, tuple[str, int]] = {}

    def stage(self, entry: Entry) -> None:
        """Build the entry's image unless it is here. `RepositoryError`: CORRUPT, or NOT_HERE where it does not fit."""
        manifest = entry.manifest
        image = manifest.image_hash
        if image in self.images:
            return
        size = max(manifest.image_bytes, 1)
        if self.bytes_used + size > self.bytes_max:
            self._forget_removed()
        try:
            out = self._memory(size) if self.bytes_used + size <= self.bytes_max else None
        except MemoryError:
            out = None
        if out is None:
            raise RepositoryError(
                f"{manifest.key}: the host store is full ({format_size(self.bytes_used)} of "
                f"{format_size(self.bytes_max)} used, {format_size(size)} in one piece wanted)", code=Code.NOT_HERE)
        self.repository.build_image(entry, out)
        out.flags.writeable = False
        self.images[image] = out
        self._entries[image] = (manifest.name, manifest.version)
        self.bytes_used += size

    def find(self, name: str, version: int, program: bytes, image: bytes) -> Entry:
        """The repository's entry with that content. `RepositoryError` NOT_HERE if there is none, or another."""
        try:
            entry = self.repository.get(name, version)
        except RepositoryError as error:
            if error.code != Code.UNKNOWN_MODEL:
                raise
            raise RepositoryError(f"{name}/{version} is not in {self.repository.root}", code=Code.NOT_HERE) from None
        manifest = entry.manifest
        if manifest.program_hash != program or (any(image) and manifest.image_hash != image):
            raise RepositoryError(f"{name}/{version} has other content here than the controller wants",
                                  code=Code.NOT_HERE)
        return entry

    def stage_all(self, usable: Callable[[Entry], bool], progress: Callable[[int, int, str], None]) -> list[str]:
        """Stage every entry that `usable` accepts; returns a line for each one that could not be."""
        found = list(self.repository.scan())
        faults = [str(item) for item in found if isinstance(item, RepositoryError)]
        entries = [item for item in found if not isinstance(item, RepositoryError)]
        for index, entry in enumerate(entries):
            progress(index, len(entries), entry.manifest.key)
            if not usable(entry):
                continue
            try:
                self.stage(entry)
            except RepositoryError as error:
                faults.append(str(error))
        progress(len(entries), len(entries), "")
        return faults

    def _forget_removed(self) -> None:
        """Drop the images of entries that have left the repository (a resident copy does not need them)."""
        present = {entry.manifest.image_hash for entry in self.repository.entries()}
        for image in [image for image in self.images if image not in present]:
            self.bytes_used -= self.images.pop(image).size
            LOG.info("forgot the image of %s/%d, which has left the repository", *self._entries.pop(image))
