"""goldfish-export: convert a run, finished or not, or one of its checkpoints to a Hugging Face folder."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from goldfish.cli.errors import message_of
from goldfish.config import build
from goldfish.data.datamodule import InjectionDataModule
from goldfish.models.llama import LlamaSource
from goldfish.models.pretrained import load_model, load_tokenizer
from goldfish.runs.record import RunDirectory
from goldfish.tools.files import reading
from goldfish.tools.terminal import complain
from goldfish.training.checkpoints import checkpoint_error

DTYPES = ("float32", "bfloat16")
PREFIXES = ("state_dict.model.", "model.model.")  # of the weights' names in checkpoints of fsdp2 and of fsdp

EXAMPLES = """\
examples:
  goldfish-export RUN_DIR exported                           a run, finished or not
  goldfish-export RUN_DIR/checkpoints/last.ckpt exported     one of its checkpoints
  goldfish-export RUN_DIR exported --dtype bfloat16          half the size
"""


class Parts:
    """The part of a frozen configuration that determines the model, without devices, which may be missing here."""

    def __init__(self, model: LlamaSource, data: InjectionDataModule) -> None:
        self.model, self.data = model, data


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; return 0, or print the reason and return 1 if it cannot be written."""
    parser = argparse.ArgumentParser(
        prog="goldfish-export",
        description="goldfish-export writes a run's model and tokenizer as a Hugging Face folder (safetensors):\n"
        "AutoModelForCausalLM.from_pretrained(OUT) loads it and gives the same logits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        type=Path,
        help="a run's folder, or a checkpoint (a file, or a sharded folder)",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that does not exist yet, or is empty")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: as they were trained)")
    parser.add_argument("--run", metavar="DIR", type=Path, help="the checkpoint's run, if it is in another folder")
    arguments = parser.parse_args(argv)
    try:
        with _written_at_once(arguments.out) as folder:
            model, tokenizer = _load(arguments.source, arguments.run)
            if arguments.dtype is not None:
                model.to(getattr(torch, arguments.dtype))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, OSError) as error:
        complain(f"goldfish-export: error: {message_of(error)}")
        return 1
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"model: {arguments.out} ({model.num_parameters():,} parameters, {dtype}) and its tokenizer")
    return 0


@contextmanager
def _written_at_once(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` when the block ends, or is removed if the block raises."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT={out}: exists and is not empty; nothing was changed. Type another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(source: Path, run_dir: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a run's folder or of one of its checkpoints."""
    if not source.exists():
        raise ValueError(
            f"RUN_OR_CHECKPOINT={source}: no such file or folder; type the folder of a run, or a checkpoint"
        )
    record = RunDirectory(source)
    if not (source / "config.yaml").is_file():
        record = RunDirectory(run_dir or source.absolute().parents[1])
        if not (record.path / "config.yaml").is_file():
            raise ValueError(
                f"RUN_OR_CHECKPOINT={source}: neither a run's folder nor a checkpoint inside one (no config.yaml in "
                f"{record.path}); if its run is in another folder, type --run DIR"
            )
        return _from_checkpoint(source, record)
    if record.finished:
        return load_model(source / "model", dtype="auto"), load_tokenizer(source / "model")
    if not record.checkpoint.exists():
        raise ValueError(
            f"RUN_OR_CHECKPOINT={source}: the run has no checkpoint yet ({record.checkpoint.name}); let it train until it saves"
        )
    return _from_checkpoint(record.checkpoint, record)


def _from_checkpoint(path: Path, record: RunDirectory) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if (reason := checkpoint_error(path)) is not None:
        raise ValueError(
            f"RUN_OR_CHECKPOINT={path}: {reason}; type another checkpoint of {record.path / 'checkpoints'}"
        )
    config = record.config()
    parts = build(Parts, {key: config[key] for key in ("model", "data") if key in config}, record.path / "config.yaml")
    prepared = parts.data.prepare(_print_progress)
    with reading(f"RUN_OR_CHECKPOINT={path}", "a checkpoint with a model's weights"):
        weights = _weights(path)
    with torch.device("meta"):
        model = LlamaForCausalLM(parts.model.config(len(prepared.tokenizer), prepared.separator))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes:
        wrong = next(
            name for name in {**shapes, **weights} if getattr(weights.get(name), "shape", None) != shapes.get(name)
        )
        raise ValueError(
            f"RUN_OR_CHECKPOINT={path}: {wrong} is not as in the model of {record.path}; type the checkpoint's own run: --run DIR"
        )
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model, prepared.tokenizer


def _print_progress(message: str, **numbers: Any) -> None:
    if not numbers.get("done"):  # once for each stage, and only if the tokenizer is not cached
        complain(f"goldfish-export: {message}")


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the model's weights of a checkpoint by their names in LlamaForCausalLM, and nothing else."""
    if path.is_file():
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        return {name.removeprefix("model."): tensor for name, tensor in found.items() if name.startswith("model.")}
    about = FileSystemReader(path).read_metadata().state_dict_metadata
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in about))
    weights = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in about.items()
        if name.startswith(prefix) and isinstance(kind, TensorStorageMetadata)
    }
    load(weights, checkpoint_id=path, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


if __name__ == "__main__":
    sys.exit(main())
