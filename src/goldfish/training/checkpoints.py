"""Checkpoints on the disk: written whole, the one before kept, checked before a run continues from one.

A checkpoint is a file, or (sharded: each process wrote its part) a folder. `last.ckpt` is the newest; `previous.ckpt`
the one before; `damaged.ckpt` one that could not be read and was put aside.
"""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from goldfish.runs.owner import owned

_SIZES = "sizes.json"  # of a sharded checkpoint's files, written last


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then takes its place: a kill or a full disk never costs both."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save whole or not at all."""
        path = Path(path)
        temporary = owned(path)
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            _take_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_folder(path: Path, is_first: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """Where all processes write a sharded checkpoint; it takes the place of `path` once all have, or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    if is_first:
        shutil.rmtree(temporary, ignore_errors=True)
    barrier()
    yield temporary
    barrier()
    if is_first:
        sizes = _sizes(temporary)
        (temporary / _SIZES).write_text(json.dumps(sizes))
        _take_place(temporary, path)
    barrier()


def _sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _take_place(temporary: Path, path: Path) -> None:
    previous = path.with_stem("previous")
    if path.exists():
        if previous.is_dir():
            shutil.rmtree(previous)
        elif path.is_dir():
            previous.unlink(missing_ok=True)
        os.replace(path, previous)
    os.replace(temporary, path)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is. A file's checksums are read, of a folder's files the sizes."""
    if path.is_dir():
        try:
            sizes = json.loads((path / _SIZES).read_text())
        except (OSError, ValueError):
            return f"{_SIZES}, its last file, is missing or unreadable"
        found = _sizes(path)
        wrong = [name for name, size in sizes.items() if found.get(name) != size]
        return f"{wrong[0]} is missing or has another size" if wrong else None
    try:
        with zipfile.ZipFile(path) as content:
            wrong_part = content.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"{error}"
    return f"the checksum of {wrong_part} is wrong" if wrong_part else None


def forget_previous(last: Path) -> None:
    """Remove the checkpoint before the last one, which a finished run needs no more."""
    previous = last.with_stem("previous")
    if previous.is_dir():
        shutil.rmtree(previous)
    else:
        previous.unlink(missing_ok=True)


def newest(last: Path, say: Callable[[str], None]) -> Path | None:
    """The newest good checkpoint, None if there never was one. A damaged one is named, put aside, and not used.

    ValueError if there is none but damaged ones.
    """
    bad = []
    for path in (last, last.with_stem("previous")):
        if not path.exists():
            continue
        if (reason := damage(path)) is None:
            return path
        bad.append(f"{path} is damaged: {reason}")
        say(bad[-1])
        aside = path.with_stem("damaged")
        with contextlib.suppress(FileNotFoundError):  # another process of the run did it
            if aside.is_dir():
                shutil.rmtree(aside)
            elif path.is_dir():
                aside.unlink(missing_ok=True)
            os.replace(path, aside)
    if bad:
        raise ValueError("\n".join([*bad, "no good checkpoint is left; to start again, remove the run's folder"]))
    return None


def as_file(folder: Path, out: Path) -> Path:
    """Make one file of a sharded checkpoint, for strategies that read no folders."""
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    checkpoint = _load_distributed_checkpoint(folder)
    optimizer = checkpoint.pop("optimizer_0")
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}  # a plain optimizer knows its parameters by number
    for group in optimizer["param_groups"]:
        group["params"] = [number[name] for name in group["params"]]
    optimizer["state"] = {number[name]: state for name, state in optimizer["state"].items()}
    checkpoint["optimizer_states"] = [optimizer]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = owned(out)
    torch.save(checkpoint, temporary)
    os.replace(temporary, out)
    return out
