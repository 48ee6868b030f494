"""List every file that a command reads, the command, and the allowed outcomes when the file is damaged.

Allowed: the command ends well (with the same result, where a copy or a checksum can give it), or with one message that
names the file. Used by `files.py` and tests/tools/test_files.py.
"""

import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damaged_files import DAMAGES, SWAPPED, damage
from file_actions import ACTIONS, OTHER_RUN, RUN, Action, inside

from goldfish.cli.errors import exit_with_reason

RAW = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)  # of it nothing may reach a terminal


@dataclass(frozen=True)
class Target:
    """A file or folder `path` of the workspace, and the `action` that reads it.

    `other`: a file of the same kind, to be swapped with it. `exact`: a copy, a checksum or a second computation must give the
    result of the undamaged file, where the action ends well.
    """

    path: str
    action: str
    other: str | None = None
    exact: bool = False
    is_folder: bool = False

    def damages(self) -> list[str]:
        """Return the kinds of damage that make sense for it."""
        if self.is_folder:
            return ["file", "symlink_loop", "missing", "pickle"]
        fit = [kind for kind in DAMAGES if kind not in ("file", SWAPPED)]
        return fit + [SWAPPED] * (self.other is not None)


TARGETS = [
    *(Target(f"documents.{end}", "read_documents", other="rows.jsonl") for end in ("jsonl", "parquet")),
    *(Target(f"saved_dataset/{name}", "read_dataset") for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")),
    Target("saved_dataset", "read_dataset", is_folder=True),
    Target("documents.jsonl", "evaluate_folder", other="rows.jsonl"),
    Target("documents.parquet", "perplexity"),
    Target("rows.jsonl", "corpus_jsonl", other="documents.jsonl"),
    Target("rows.parquet", "corpus_parquet", other="documents.parquet"),
    Target("texts/b.txt", "corpus_text"),
    Target("texts", "corpus_text", is_folder=True),
    Target("saved_dataset/data-00000-of-00001.arrow", "corpus_dataset"),
    Target("tokens.bin", "corpus_tokens", other="megatron.bin"),
    Target("megatron.bin", "corpus_megatron", other="tokens.bin"),
    Target("megatron.idx", "corpus_megatron", other="other.idx"),
    *(Target(f"CACHE/{name}", "prepare", exact=True, other=other) for name, other in (
        ("background.bin", "CACHE/validation.bin"), ("background_starts.bin", None), ("meta.json", None),
        ("tokenizer/tokenizer.json", "small/tokenizer.json"), ("validation.bin", None))),
    Target("CACHE", "prepare", exact=True, is_folder=True),
    *(Target(f"hf_model/{name}", "evaluate_folder", other=f"small/{name}") for name in (
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
    *(Target(f"hf_model/{name}", "pretrained", other=f"small/{name}") for name in (
        "config.json", "model.safetensors", "tokenizer.json")),
    Target("hf_model", "pretrained", is_folder=True),
    Target("stopped_run/checkpoints/last.ckpt", "resume", exact=True, other="small/model.safetensors"),
    Target("stopped_run/config.yaml", "resume", exact=True),
    Target("stopped_run/progress.json", "resume", exact=True),
    Target("stopped_run/csv/attempt_000/metrics.csv", "resume", exact=True),
    Target("stopped_run/checkpoints/last.ckpt", "export_checkpoint", exact=True),
    *(Target(f"sharded_run/checkpoints/last.ckpt/{name}", "export_sharded", exact=True) for name in (
        ".metadata", "__0_0.distcp", "sizes.json")),
    Target("sharded_run/checkpoints/last.ckpt", "export_sharded", exact=True, is_folder=True),
    *(Target(f"{RUN}/{name}", "report", other=f"{OTHER_RUN}/{name}") for name in (
        "result.json", "summary.json", "config.yaml", "environment.json", "metrics.csv", "exposures.csv", "extraction.parquet")),
    Target(f"{RUN}/evaluations/prefix8_suffix8/summary.json", "report"),
    *(Target(f"{RUN}/{name}", "evaluate_run", other=f"{OTHER_RUN}/{name}") for name in (
        "config.yaml", "documents.jsonl", "exposures.csv", "model/model.safetensors", "model/config.json")),
    *(Target(f"killed_evaluation/{name}", "continue_evaluation", exact=name != "config.yaml", other=other) for name, other in (
        ("config.yaml", None), ("parts/000-00000000-00000003.parquet", "killed_evaluation/parts/membership-00000000-00000003.parquet"),
        ("parts/membership-00000000-00000003.parquet", None))),
    *(Target(f"{RUN}/{name}", "export_run") for name in ("model/model.safetensors", "model/config.json", "model/tokenizer.json")),
    *(Target(f"tofu_files/{name}.json", "questions", other="tofu_files/retain99.json") for name in (
        "forget01", "forget01_perturbed", "world_facts_perturbed")),
    *(Target(f"{RUN}/{name}", "forget_documents", other=f"small/{other}") for name, other in (
        ("result.json", "config.json"), ("config.yaml", "config.json"), ("documents.jsonl", "config.json"),
        ("exposures.csv", "config.json"))),
    *(Target(f"ngram_filter/{name}", "memfree", exact=True) for name in ("ngrams.bloom", "meta.json")),
    *(Target(f"stopped_run/{name}", "show") for name in ("progress.json", "job.log")),
]  # fmt: skip


class Workspace:
    """A folder with all of these files, undamaged; `action` runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = ""  # the name of the prepared data's folder

    def path(self, name: str) -> Path:
        """Return a file of the workspace; CACHE stands for the folder of the prepared data."""
        return self.root / name.replace("CACHE", f"cache/{self.cache}")

    def make(self) -> None:
        """Write what is missing: one run is trained, the other files are derived from it."""
        from make_files import make

        if not self.root.exists():
            make(self.root)
        self.cache = next(path.parent.name for path in (self.root / "cache").glob("*/background.bin"))


@dataclass(frozen=True)
class Case:
    """One damage of one target; `seed` draws its place in the file."""

    number: int
    target: Target
    kind: str
    seed: int


def cases(count: int, seed: int, actions: tuple[str, ...] = tuple(ACTIONS)) -> list[Case]:
    """Return `count` different cases, with targets and kinds of damage equally often, as far as they fit together."""
    draw = random.Random(seed)
    targets = [target for target in TARGETS if target.action in actions]
    pairs = [(target, kind) for target in targets for kind in target.damages()]
    draw.shuffle(pairs)
    used: dict[Any, int] = {}
    found = []
    for number in range(count):
        target, kind = min(pairs, key=lambda pair: used.get(pair[0], 0) + used.get(pair[1], 0) + 9 * used.get(pair, 0))
        for key in (target, kind, (target, kind)):
            used[key] = used.get(key, 0) + 1
        found.append(Case(number, target, kind, seed * 1_000_003 + number))
    return found


def verdict(case: Case, workspace: Workspace, expected: dict[str, Any]) -> tuple[str, str]:
    """Run a case in a copy of the workspace; return its outcome and its message: survived, named, or fault: ...

    `expected`: results of undamaged files, by action; filled here when they are first needed.
    """
    target = case.target
    if target.exact and target.action not in expected:
        with copied(workspace) as whole, inside(whole.root):
            Path("documents.damaged").write_text(target.path)
            expected[target.action] = ACTIONS[target.action]()
    with copied(workspace) as damaged, inside(damaged.root):
        Path("documents.damaged").write_text(target.path)
        sentinel = damaged.root / "executed"
        path, other = damaged.path(target.path), target.other and damaged.path(target.other)
        damage(path, case.kind, random.Random(case.seed), sentinel, other or None)
        finished = _content(damaged.root / "runs")
        edited = path.suffix == ".parquet" and case.kind in ("hostile", "raw_escapes")  # a whole file of other texts
        wanted = expected[target.action] if target.exact and not edited else None
        state, said = _run(ACTIONS[target.action], wanted, target)
        if sentinel.exists():
            return "fault: executed", said
        if _content(damaged.root / "runs") != finished:
            return "fault: a finished run was changed", said
        if raw := RAW.search(said):
            return f"fault: {raw[0]!r} reached the terminal", said
        return state, said


def _run(action: Action, expected: Any, target: Target) -> tuple[str, str]:
    """Run the action and capture everything that the process prints."""
    with tempfile.TemporaryFile() as caught:
        state = ""
        with _printing_to(caught):
            try:
                found: list[Any] = []
                exit_with_reason("goldfish", lambda: found.append(action()))
                if expected is not None and found[0] != expected:
                    state = "fault: another result, and nothing was said"
            except SystemExit as ended:
                state = "" if ended.code in (0, None) else "named"
                if ended.code not in (0, 1, 2, None):
                    state = f"fault: exit code {ended.code}"
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                state = f"fault: {type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        caught.seek(0)
        said = caught.read().decode("utf-8", "replace")
    if state == "named":
        names = {part.removesuffix(".bin") for part in target.path.split("/") if part not in ("runs", "study", "CACHE")}
        names |= {(target.other or target.path).rpartition("/")[2]}  # the other of a pair
        names |= (
            {"data.corpus", "data.injection"} if target.action.startswith("corpus") else set()
        )  # too little text is left
        if not any(name in said for name in names):
            state = "fault: the message does not name the file"
        if "Traceback" in said:
            state = "fault: a traceback was printed"
    return state or "survived", said


@contextmanager
def _printing_to(file: Any) -> Iterator[None]:
    """Redirect what this process prints, also from C++, to a file."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", errors="surrogateescape", closefd=False) for number in (1, 2)
    )
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


@contextmanager
def copied(workspace: Workspace) -> Iterator[Workspace]:
    """Yield a copy of the workspace and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="goldfish-files-") as folder:
        copy = Workspace(Path(folder).resolve() / "work")
        copy.cache = workspace.cache
        shutil.copytree(workspace.root, copy.root, symlinks=True)
        yield copy


def _content(folder: Path) -> dict[str, str]:
    """Return the files of finished runs except evaluations, which goldfish-eval adds."""
    found = {}
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and not file.name.startswith("."):
            found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
