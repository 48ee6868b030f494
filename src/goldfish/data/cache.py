"""Write files that survive a kill, and folders that detect damaged files."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from goldfish.tools import files as disk
from goldfish.tools.writing import write_atomically

META = "meta.json"
ALWAYS_READ = 1 << 26  # bytes: a file up to this size is hashed at every opening (0.1 s at most)


class Damaged(Exception):
    """Report that a folder does not hold what was written there; the message says what is wrong."""


class Appended:
    """Append to files in `folder`. After a kill they continue from the last `save`; what was written later is cut off.

    Raises Damaged if they hold less than at that `save`, or something else. `state`: saved with them, {} at first.
    """

    def __init__(self, folder: Path, names: Iterable[str], progress: str = "progress.json") -> None:
        self._progress = folder / progress
        saved = read_json(self._progress) if self._progress.exists() else {"files": {}, "state": {}}
        try:
            self.state: dict[str, Any] = saved["state"]
            self.sizes: dict[str, int] = {name: saved["files"].get(name, [0])[0] for name in names}
            digests = {name: saved["files"][name][1] for name in saved["files"]}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise Damaged(f"{progress} is not complete") from error
        self._digests = {name: hashlib.sha256() for name in names}
        self._files = {name: (folder / name).open("a+b") for name in names}
        for name, file in self._files.items():
            file.seek(0)
            remaining = self.sizes[name]
            while remaining and (block := file.read(min(remaining, 1 << 20))):
                self._digests[name].update(block)
                remaining -= len(block)
            if remaining or digests.get(name, self._digests[name].hexdigest()) != self._digests[name].hexdigest():
                raise Damaged(f"{name} was cut off or edited")
            file.truncate(self.sizes[name])

    def append(self, name: str, content: bytes) -> None:
        """Append `content` to file `name`."""
        self._files[name].write(content)
        self._digests[name].update(content)
        self.sizes[name] += len(content)

    def save(self, state: dict[str, Any]) -> None:
        """Write the appended bytes and `state` to disk, so that they survive a kill or a power loss."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        files = {name: [self.sizes[name], digest.hexdigest()] for name, digest in self._digests.items()}
        write_atomically(self._progress, json.dumps({"files": files, "state": state}))

    def close(self) -> None:
        """Close the files; bytes appended after the last `save` may be lost."""
        for file in self._files.values():
            file.close()


def remove(path: Path) -> None:
    """Remove a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Write `meta`, and the size, times and SHA-256 of each file below `folder`, to its meta.json."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(META))
    _write_meta(folder, meta, {str(path.relative_to(folder)): [*_stamp(path), _sha256(path)] for path in paths})


def unseal(folder: Path) -> dict[str, Any]:
    """Return the `meta` of a sealed folder; raise Damaged that names a file whose content changed.

    Files up to 64 MiB are always hashed. A larger file is hashed only if its size or times changed, because hashing
    terabytes takes longer than a run reads. Disk errors, which change no time, are therefore not detected in it.
    """
    given = read_json(folder / META)
    if not isinstance(given, dict) or given.pop("sha256", None) != _sha256_of(given):
        raise Damaged(f"{META} was cut off or edited")
    files: dict[str, list[Any]] = given["files"]
    meta: dict[str, Any] = given["meta"]
    changed = {}
    for name, (*stamp, sha256) in files.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if (now := _stamp(folder / name)) != stamp or now[0] <= ALWAYS_READ:
            if now[0] != stamp[0] or _sha256(folder / name) != sha256:
                raise Damaged(f"{name} was cut off or edited")
            if now != stamp:
                changed[name] = [*now, sha256]
    if changed:
        _write_meta(folder, meta, files | changed)
    return meta


def _write_meta(folder: Path, meta: dict[str, Any], files: dict[str, list[Any]]) -> None:
    content = {"meta": meta, "files": files}
    write_atomically(folder / META, json.dumps({**content, "sha256": _sha256_of(content)}))


def _sha256_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raise Damaged if it cannot be read."""
    try:
        return disk.read_json(path)
    except disk.FileError as error:
        raise Damaged(f"{path.name} cannot be read") from error


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]  # ctime: detects an edit that restores mtime


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
