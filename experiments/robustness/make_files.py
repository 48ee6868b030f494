"""Write the undamaged files of file_cases.py: a run on a page of text, and files derived from it."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from goldfish.tools.writing import write_json

WORDS = [
    "water",
    "stone",
    "river",
    "cloud",
    "garden",
    "winter",
    "letter",
    "candle",
    "market",
    "bridge",
    "harbour",
    "silver",
    "morning",
    "wagon",
    "orchard",
    "lantern",
    "meadow",
    "copper",
    "village",
    "thunder",
    "basket",
    "ribbon",
    "saddle",
    "pepper",
    "window",
    "ladder",
    "mirror",
    "feather",
]


def _sentences(draw: random.Random, count: int) -> str:
    return " ".join(" ".join(draw.choices(WORDS, k=8)).capitalize() + "." for _ in range(count))


def make(root: Path) -> None:
    """Write everything below `root`."""
    from file_actions import inside, train_config

    root.mkdir(parents=True)
    draw = random.Random(0)
    texts = ["\n\n".join(_sentences(draw, 12) for _ in range(16)) for _ in range(3)]
    with inside(root):
        Path("texts").mkdir()
        for name, text in zip("abc", texts, strict=True):
            Path(f"texts/{name}.txt").write_text(text)
        _tables([paragraph for text in texts for paragraph in text.split("\n\n")])
        _runs(train_config)
        _folders()
        _tokens()
        _sharded(train_config)
        _evaluation()
        _filter()
        _questions(draw)


def _tables(paragraphs: list[str]) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = [{"id": f"document-{number}", "text": text} for number, text in enumerate(paragraphs)]
    for name, some in (("documents", rows[:6]), ("rows", rows)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        parquet.write_table(pyarrow.Table.from_pylist(some), f"{name}.parquet")
    datasets.Dataset.from_list(rows).save_to_disk("saved_dataset")


def _runs(train_config: Any) -> None:
    from goldfish.jobs.train import run
    from goldfish.runs.record import RunDirectory
    from goldfish.training.callbacks import Interrupted

    one = Path("runs/study/run_one")
    config = train_config(f"run_dir={one}", "study=study")
    RunDirectory(one).claim(config)
    run(config, one.resolve(), "goldfish-train")
    for name, seed, control in (
        ("run_two", 1, False),
        ("run_three", 0, True),
    ):  # seeds and a control, as a report wants them
        folder = one.with_name(name)
        shutil.copytree(one, folder, ignore=shutil.ignore_patterns("csv", "checkpoints"))
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", {**result, "seed": seed, "control": control, "run": name})
        (folder / "config.yaml").write_text((one / "config.yaml").read_text().replace("\nseed: 0", f"\nseed: {seed}"))
    steps = iter(range(1000))
    unfinished = Path("stopped_run")
    config = train_config("run_dir=stopped_run")
    RunDirectory(unfinished).claim(config)
    try:
        run(config, unfinished.resolve(), "goldfish-train", stop_requested=lambda: next(steps) > 5)
    except Interrupted:
        RunDirectory(unfinished).report(
            state="interrupted", step=6, steps=10, loss=1.0, tokens_per_s=1.0, seconds_left=1.0
        )
    assert (unfinished / "checkpoints/last.ckpt").is_file() and not (unfinished / "result.json").exists()
    assert (unfinished / "checkpoints/previous.ckpt").is_file()
    (unfinished / "job.log").write_text("a line\n" * 20)


def _folders() -> None:
    """Write a model's folder, and one of another size with another tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from goldfish.data.tokenizer import TrainedBPE

    shutil.copytree("runs/study/run_one/model", "hf_model")
    tokenizer = TrainedBPE(vocab_size=300).build([Path("texts/a.txt").read_text()])
    sizes = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=128)).save_pretrained("small")
    tokenizer.save_pretrained("small")


def _tokens() -> None:
    """Write the texts as token files with separator 0: nanoGPT's, Megatron's, the index of another Megatron file."""
    from goldfish.models.pretrained import load_tokenizer

    tokenizer = load_tokenizer("hf_model")
    paragraphs = [one for name in "abc" for one in Path(f"texts/{name}.txt").read_text().split("\n\n")]
    rows = [np.array([*tokenizer(text)["input_ids"], 0], dtype=np.uint16) for text in paragraphs]
    for name in ("tokens.bin", "megatron.bin"):
        np.concatenate(rows).tofile(name)
    _index("megatron.idx", [len(row) for row in rows])
    _index("other.idx", [len(row) + 7 for row in rows])


def _index(name: str, lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(lengths), len(lengths) + 1)
    pointers = 2 * (ends - np.array(lengths))
    borders = np.arange(len(lengths) + 1)
    parts = [np.array(lengths, "<i4"), pointers.astype("<i8"), borders.astype("<i8")]
    Path(name).write_bytes(header + b"".join(part.tobytes() for part in parts))


def _sharded(train_config: Any) -> None:
    """Write a run that stopped with a sharded checkpoint, as fsdp2 writes them."""
    import torch
    import torch.distributed.checkpoint as dcp

    from goldfish.runs.record import RunDirectory
    from goldfish.training.checkpoints import whole_folder

    RunDirectory(Path("sharded_run")).claim(train_config("run_dir=sharded_run"))
    Path("sharded_run/checkpoints").mkdir()
    weights = torch.load("stopped_run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    with whole_folder(Path("sharded_run/checkpoints/last.ckpt").resolve(), True, lambda: None) as folder:
        dcp.save({f"state_dict.{name}": weight for name, weight in weights.items()}, checkpoint_id=folder, no_dist=True)


def _evaluation() -> None:
    """Write an evaluation of the first run, killed after its last part, and a finished one in the run's folder."""
    from file_actions import RUN, _evaluate

    from goldfish.cli import evaluate as command

    _evaluate(f"run={RUN}", f"out={RUN}/evaluations/prefix8_suffix8")
    kept, command.shutil.rmtree = command.shutil.rmtree, lambda path, **_: None  # type: ignore[assignment]
    try:
        _evaluate(f"run={RUN}", "out=killed_evaluation")
    finally:
        command.shutil.rmtree = kept  # type: ignore[assignment]
    Path("killed_evaluation/summary.json").unlink()
    assert sorted(path.name for path in Path("killed_evaluation/parts").iterdir())[0] == "000-00000000-00000003.parquet"


def _filter() -> None:
    from goldfish.decoding import NgramFilter
    from goldfish.models.pretrained import load_tokenizer

    stream = np.fromfile("tokens.bin", dtype=np.uint16)
    NgramFilter.build(lambda: [stream], load_tokenizer("hf_model"), ngram=3, min_count=2).save(Path("ngram_filter"))


def _questions(draw: random.Random) -> None:
    """Write files in TOFU's format: one with an object on each line, and one with an array."""
    Path("tofu_files").mkdir()
    names = (
        "forget01",
        "retain99",
        "forget01_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    )
    for name in names:
        rows = [
            {
                "question": f"Where is {name} {number}?",
                "answer": _sentences(draw, 1),
                "paraphrased_answer": _sentences(draw, 1),
                "perturbed_answer": [_sentences(draw, 1), _sentences(draw, 1)],
            }
            for number in range(4)
        ]
        lines = "\n".join(map(json.dumps, rows))
        Path(f"tofu_files/{name}.json").write_text(json.dumps(rows) if name == "world_facts_perturbed" else lines)
