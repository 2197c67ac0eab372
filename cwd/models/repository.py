"""The model repository on disk: finding, reading, adding and removing entries.

```
<repo>/TRUSTED                       made by the operator: exported programs and any factory are allowed
<repo>/<name>/<version>/             model.json, weights.safetensors
<repo>/<name>/IN_USE                 the version that the name stands for; without it, the newest
<repo>/.programs/<hash>/             program.json, program.pt2 (exported programs), profile.<kind>.json
```
A folder appears whole or not at all: it is written beside its place under a name with a leading dot, and renamed.
Several processes may read while one writes. Knows neither torch nor numba.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models import layout
from cwd.models.manifest import WEIGHTS_FILE, Manifest, check_name, manifest_from_json, program_hash_in
from cwd.models.spec import ProgramSpec, program_from_json

MODEL_FILE = "model.json"
PROGRAM_FILE = "program.json"
EXPORTED_FILE = "program.pt2"
PROGRAMS_FOLDER = ".programs"
TRUSTED_FILE = "TRUSTED"
IN_USE_FILE = "IN_USE"
JSON_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class Entry:
    """A readable model: its manifest and where its files are."""

    manifest: Manifest
    folder: Path
    program_folder: Path

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_FILE


class Repository:
    """A folder of models. Programs are read once and shared by the entries that name them."""

    def __init__(self, root: str | os.PathLike[str], *, create: bool = False) -> None:
        self.root = Path(root)
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        if not self.root.is_dir():
            raise RepositoryError(f"{self.root}: no such folder")
        self._programs: dict[bytes, ProgramSpec] = {}

    @property
    def trusted(self) -> bool:
        """Whether the operator vouches for the code in it (see TRUSTED above)."""
        return (self.root / TRUSTED_FILE).is_file()

    def scan(self) -> Iterator[Entry | RepositoryError]:
        """Every entry, sorted by name and version; what cannot be read comes as the error that says why."""
        for folder in sorted(self.root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                versions = sorted(self._versions(folder))
            except OSError as error:
                yield RepositoryError(f"{folder}: {error.strerror}")
                continue
            for version in versions:
                try:
                    yield self._read(folder / str(version))
                except RepositoryError as error:
                    yield error

    def marks(self) -> Iterator[tuple[str, int, tuple[Any, ...]]]:
        """Every name and version, sorted, with a mark that is another one when its files are; nothing is read.

        Version 0 of a name is its choice of a version, `use`.
        """
        for folder in sorted(self.root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                versions = sorted(self._versions(folder))
            except OSError:
                continue
            for version in versions:
                yield folder.name, version, (_mark(folder / str(version) / MODEL_FILE), _mark(folder / str(version) / WEIGHTS_FILE))
            yield folder.name, 0, (_mark(folder / IN_USE_FILE), bool(versions))

    def program_mark(self, program_hash: bytes) -> tuple[Any, ...]:
        """A mark that is another one when a profile of the program is."""
        return _mark(self.program_folder(program_hash))

    def read(self, name: str, version: int) -> Entry:
        """The entry of a name and a version that `marks` gave; `RepositoryError` says what is wrong with it."""
        return self._read(self.root / name / str(version))

    def entries(self) -> list[Entry]:
        """The readable entries alone."""
        return [entry for entry in self.scan() if isinstance(entry, Entry)]

    def get(self, name: str, version: int = 0) -> Entry:
        """The model's entry, the newest version for 0. `RepositoryError`: UNKNOWN_MODEL, or what is wrong with it."""
        folder = self.root / check_name(name)
        versions = self._versions(folder) if folder.is_dir() else []
        if not versions or version and version not in versions:
            what = f"{name}/{version}" if version else name
            raise RepositoryError(f"{self.root}: no model {what}", code=Code.UNKNOWN_MODEL)
        return self._read(folder / str(version or max(versions)))

    def in_use(self, name: str) -> int:
        """The version that was chosen with `use` and is still there; 0: none, so that the newest is meant."""
        folder = self.root / check_name(name)
        try:
            text = (folder / IN_USE_FILE).read_text("ascii").strip()
        except (OSError, UnicodeError):
            return 0
        return int(text) if text.isdecimal() and int(text) in self._versions(folder) else 0

    def use(self, name: str, version: int) -> None:
        """Have the name stand for a version from the next start of a controller on. `RepositoryError` (UNKNOWN_MODEL)."""
        write_json(self.get(name, version).folder.parent / IN_USE_FILE, version)

    def program(self, program_hash: bytes) -> ProgramSpec:
        """The program's spec, whose hash has been checked to be its name."""
        spec = self._programs.get(program_hash)
        if spec is None:
            path = self.program_folder(program_hash) / PROGRAM_FILE
            spec = program_from_json(read_json(path), str(path))
            if spec.hash() != program_hash:
                raise RepositoryError(f"{path}: its content is program {spec.hash().hex()}", code=Code.CORRUPT)
            self._programs[program_hash] = spec
        return spec

    def program_folder(self, program_hash: bytes) -> Path:
        return self.root / PROGRAMS_FOLDER / program_hash.hex()

    def add_program(self, spec: ProgramSpec, exported: str | os.PathLike[str] | None = None) -> bytes:
        """Store a program (and its .pt2) unless it is there; returns its hash."""
        program_hash = spec.hash()
        folder = self.program_folder(program_hash)
        if not (folder / PROGRAM_FILE).exists():
            try:
                with self._new_folder(folder) as new:
                    if exported is not None:
                        shutil.copyfile(exported, new / EXPORTED_FILE)
                    write_json(new / PROGRAM_FILE, spec.to_json())
            except RepositoryError as error:
                if error.code != Code.MODEL_EXISTS:  # someone else has just stored the same
                    raise
            self.program(program_hash)
        return program_hash

    def add(self, name: str, version: int, program_hash: bytes, tensors: dict[str, np.ndarray], *,
            seed: int = -1) -> Entry:
        """Store an instance of a stored program; `tensors` as for `layout.write_weights`. MODEL_EXISTS if there."""
        spec = self.program(program_hash)
        folder = self.root / check_name(name) / str(version)
        if folder.exists():
            raise RepositoryError(f"{self.root}: model {name}/{version} exists already", code=Code.MODEL_EXISTS)
        with self._new_folder(folder) as new:
            sha256 = layout.write_weights(new / WEIGHTS_FILE, tensors, spec.weights)
            manifest = Manifest(name, version, spec, program_hash, sha256, (new / WEIGHTS_FILE).stat().st_size,
                                layout.Layout.of(spec).image_bytes, seed)
            write_json(new / MODEL_FILE, manifest.to_json())
        return self._read(folder)

    def remove(self, name: str, version: int = 0) -> list[str]:
        """Take out a version, or all for 0, broken ones too; returns their keys. The program stays: others share it."""
        folder = self.root / check_name(name)
        versions = self._versions(folder) if folder.is_dir() else []
        gone = [found for found in versions if version in (0, found)]
        if not gone:
            what = f"{name}/{version}" if version else name
            raise RepositoryError(f"{self.root}: no model {what}", code=Code.UNKNOWN_MODEL)
        for found in gone:
            # renamed first, so that a reader never meets half a folder
            trash = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.root))
            os.rename(folder / str(found), trash / "entry")
            shutil.rmtree(trash)
        if not self._versions(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return [f"{name}/{found}" for found in sorted(gone)]

    def prune(self) -> list[str]:
        """Remove programs that no entry names; refuses while an entry is unreadable, since it may name one."""
        used = set()
        for found in self.scan():
            if isinstance(found, RepositoryError):
                raise found
            used.add(found.manifest.program_hash.hex())
        gone = [folder for folder in self._program_folders() if folder.name not in used]
        for folder in gone:
            shutil.rmtree(folder)
        self._programs.clear()
        return [folder.name for folder in gone]

    def verify(self, entry: Entry) -> None:
        """Check the weights file against the recorded sha256; `RepositoryError` (CORRUPT) if it differs."""
        with layout.WeightsFile(entry.weights_path) as file:
            found = file.sha256()
        if found != entry.manifest.weights_sha256:
            raise RepositoryError(f"{entry.weights_path}: its sha256 is {found[:16]}..., recorded was "
                                  f"{entry.manifest.weights_sha256[:16]}...", code=Code.CORRUPT)

    def build_image(self, entry: Entry, out: np.ndarray) -> int:
        """The entry's page image into `out` (u1), sha256 checked; returns the image's bytes."""
        manifest = entry.manifest
        return layout.build_image(entry.weights_path, manifest.weights_sha256, manifest.program, out)

    def profile_path(self, program_hash: bytes, kind: str) -> Path:
        return self.program_folder(program_hash) / f"profile.{check_name(kind)}.json"

    def write_profile(self, program_hash: bytes, kind: str, value: dict[str, Any]) -> Path:
        path = self.profile_path(program_hash, kind)
        write_json(path, value)
        return path

    def read_profile(self, program_hash: bytes, kind: str) -> dict[str, Any] | None:
        """The stored profile of a program on a kind of device, or None (see profile.py for its fields)."""
        path = self.profile_path(program_hash, kind)
        return read_json(path) if path.exists() else None

    def profiled_kinds(self, program_hash: bytes) -> list[str]:
        """Kinds of device for which the program has a profile, sound or not."""
        names = (path.name for path in self.program_folder(program_hash).glob("profile.*.json"))
        return sorted(name.removeprefix("profile.").removesuffix(".json") for name in names)

    def _program_folders(self) -> list[Path]:
        folder = self.root / PROGRAMS_FOLDER
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []

    def _versions(self, folder: Path) -> list[int]:
        names = [path.name for path in folder.iterdir()]
        return [int(name) for name in names if name.isdecimal() and name.isascii() and not name.startswith("0")]

    def _read(self, folder: Path) -> Entry:
        path = folder / MODEL_FILE
        value = read_json(path)
        program_hash = program_hash_in(value, str(path))
        manifest = manifest_from_json(value, self.program(program_hash), str(path))
        if manifest.key != f"{folder.parent.name}/{folder.name}":
            raise RepositoryError(f"{path}: it says it is {manifest.key}")
        image_bytes = layout.Layout.of(manifest.program).image_bytes
        if manifest.image_bytes != image_bytes:
            raise RepositoryError(f"{path}: field 'image_bytes': {manifest.image_bytes}, but the program's image has "
                                  f"{image_bytes}")
        weights = folder / WEIGHTS_FILE
        try:
            size = weights.stat().st_size
        except OSError as error:
            raise RepositoryError(f"{weights}: {error.strerror}") from None
        if size != manifest.weights_bytes:
            raise RepositoryError(f"{weights}: {size} bytes, recorded were {manifest.weights_bytes}", code=Code.CORRUPT)
        return Entry(manifest, folder, self.program_folder(program_hash))

    @contextmanager
    def _new_folder(self, folder: Path) -> Iterator[Path]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        new.chmod(0o755)
        try:
            yield new
            os.rename(new, folder)
        except OSError as error:
            if folder.exists():
                raise RepositoryError(f"{folder}: exists already", code=Code.MODEL_EXISTS) from None
            raise RepositoryError(f"{folder}: {error.strerror}") from None
        finally:
            if new.exists():
                shutil.rmtree(new, ignore_errors=True)


def _mark(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another without reading it; () if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_json(path: Path) -> Any:
    """Parsed JSON; `RepositoryError` names the file and, for bad JSON, the line."""
    try:
        with open(path, "rb") as file:
            text = file.read(JSON_BYTES_MAX + 1)
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from None
    if len(text) > JSON_BYTES_MAX:
        raise RepositoryError(f"{path}: larger than {JSON_BYTES_MAX} bytes")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RepositoryError(f"{path}: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise RepositoryError(f"{path}: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write the file whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
