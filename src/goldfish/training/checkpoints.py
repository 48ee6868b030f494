"""Write checkpoints atomically, keep the previous one, and check a checkpoint before a run continues from it.

A checkpoint is a file, or a folder if it is sharded (each process writes its part). `last.ckpt` is the latest,
`previous.ckpt` the one before, `damaged.ckpt` one that could not be read and was renamed.
"""

import contextlib
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import EnumType
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from goldfish.tools.files import FileError, read_object, reading, reason
from goldfish.tools.owner import owned

_SIZES = "sizes.json"  # sizes and checksums of a sharded checkpoint's files, written last
_CHECKED = 1 << 26  # bytes at each end of a file that are checked; the middle of a larger file is not checked


class WholeCheckpoints(TorchCheckpointIO):
    """Write a checkpoint next to the old one and then replace it: a kill or a full disk never destroys both."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save the whole checkpoint or nothing."""
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
    """Yield a folder where all processes write a sharded checkpoint; it replaces `path` once all have finished."""
    temporary = path.with_name(f".{path.name}.new")
    if is_first:
        shutil.rmtree(temporary, ignore_errors=True)
    barrier()
    yield temporary
    barrier()
    if is_first:
        content = {name: [size, _crc(temporary / name)] for name, size in _sizes(temporary).items()}
        (temporary / _SIZES).write_text(json.dumps(content))
        _take_place(temporary, path)
    barrier()


def _sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _crc(path: Path) -> int:
    """Return the CRC-32 of a file's first and last 64 MiB; reading all of a large file at each save takes too long."""
    with path.open("rb") as file:
        found = zlib.crc32(file.read(_CHECKED))
        file.seek(max(_CHECKED, path.stat().st_size - _CHECKED))
        return zlib.crc32(file.read(_CHECKED), found)


def _take_place(temporary: Path, path: Path) -> None:
    previous = path.with_stem("previous")
    if path.exists():
        if previous.is_dir():
            shutil.rmtree(previous)
        elif path.is_dir():
            previous.unlink(missing_ok=True)
        os.replace(path, previous)
    os.replace(temporary, path)


def checkpoint_error(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None. Nothing in it is executed.

    A file is checked by its checksums; a folder by the sizes of its files and the checksums of their first and last
    64 MiB.
    """
    if path.is_dir():
        return _folder_damage(path)
    try:
        with zipfile.ZipFile(path) as content:
            wrong_part = content.testzip()
        if wrong_part is None:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # weights_only: no code is run
    except Exception as error:  # zipfile, zlib and torch raise many types
        return f"not a whole checkpoint ({reason(error)})"
    return f"the checksum of {wrong_part} is wrong" if wrong_part else None


def model_mismatch(path: Path, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return how the weights in a checkpoint file differ from a model's shapes by name, or None."""
    whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = whole.get("state_dict") if isinstance(whole, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(one, torch.Tensor) for one in weights.values()):
        return "it holds no weights by name (state_dict)"
    for name, tensor in weights.items():
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name]):
            return f"{name} has shape {tuple(tensor.shape)}, the model's has {tuple(shapes[name])}"
    return (
        None
        if any(name in shapes for name in weights)
        else f"its weights have other names, such as {next(iter(weights), '')!r}"
    )


def _folder_damage(path: Path) -> str | None:
    try:
        sizes = read_object(path / _SIZES)
    except FileError:
        return f"{_SIZES}, its last file, is missing or unreadable"
    found = _sizes(path)
    for name, about in sizes.items():
        # Older versions wrote the size only.
        size, crc = about if isinstance(about, list) and len(about) == 2 else (about, None)
        if found.get(name) != size:
            return f"{name} is missing or has another size"
        if crc is not None and _crc(path / name) != crc:
            return f"the checksum of {name} is wrong"
    if (path / ".metadata").is_file():
        try:
            with (path / ".metadata").open("rb") as file:
                _OnlyMetadata(file).load()
        except Exception as error:  # pickle and the classes' constructors raise many types
            return f".metadata does not describe tensors ({reason(error)})"
    return None


class _OnlyMetadata(pickle.Unpickler):
    """Unpickle the .metadata of torch.distributed.checkpoint with checks; torch itself does not check it."""

    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _OTHERS = {("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")}  # noqa: RUF012
    _OTHERS |= {("collections", "OrderedDict")}

    def find_class(self, module: str, name: str) -> Any:
        """Return the class if it only describes tensors; raise UnpicklingError otherwise."""
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in self._OTHERS or is_type:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.2 pickles a member of an enum
            return _enum_member
        if module in self._MODULES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it uses {module}.{name}")


def _enum_member(kind: Any, name: str) -> Any:
    """Return the member of an enum; raise UnpicklingError for an attribute of anything else."""
    if not isinstance(kind, EnumType):
        raise pickle.UnpicklingError(f"it uses an attribute of {kind!r:.80}")
    return kind[name]


def forget_previous(last: Path) -> None:
    """Remove the previous checkpoint, which a finished run no longer needs."""
    previous = last.with_stem("previous")
    if previous.is_dir():
        shutil.rmtree(previous)
    else:
        previous.unlink(missing_ok=True)


def latest_checkpoint(last: Path, on_warning: Callable[[str], None]) -> Path | None:
    """Return the latest intact checkpoint, or None if there never was one. A damaged one is reported and renamed.

    Raises ValueError if all checkpoints are damaged.
    """
    bad = []
    for path in (last, last.with_stem("previous")):
        if not path.exists():
            continue
        if (reason := checkpoint_error(path)) is None:
            return path
        bad.append(f"{path} is damaged: {reason}")
        on_warning(bad[-1])
        aside = path.with_stem("damaged")
        with contextlib.suppress(FileNotFoundError):  # another process of the run already renamed it
            if aside.is_dir():
                shutil.rmtree(aside)
            elif path.is_dir():
                aside.unlink(missing_ok=True)
            os.replace(path, aside)
    if bad:
        raise ValueError("\n".join([*bad, "no intact checkpoint is left; to start again, remove the run's folder"]))
    return None


@contextlib.contextmanager
def without_pickles(path: Path) -> Iterator[None]:
    """Have torch read tensors and plain values only while `path` is loaded, whatever a library asks of it.

    torch reads the values of a sharded checkpoint, and DeepSpeed its own files, with `weights_only=False`: that would run
    what they hold. FileError names `path` if it holds anything else.
    """
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with reading(path, "a checkpoint of tensors and plain values"):
            try:
                yield
            except CheckpointException as error:  # no Exception; it holds those of all processes
                raise next(iter(error.failures.values()))[0] from error
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def consolidate(folder: Path, out: Path) -> Path:
    """Convert a sharded checkpoint to one file, for strategies that cannot read folders; return `out`."""
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    with without_pickles(folder):
        checkpoint = _load_distributed_checkpoint(folder)
    optimizer = checkpoint.pop("optimizer_0")
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}  # a plain optimizer's state uses parameter numbers
    for group in optimizer["param_groups"]:
        group["params"] = [number[name] for name in group["params"]]
    optimizer["state"] = {number[name]: state for name, state in optimizer["state"].items()}
    checkpoint["optimizer_states"] = [optimizer]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = owned(out)
    torch.save(checkpoint, temporary)
    os.replace(temporary, out)
    return out
