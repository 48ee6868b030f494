"""Stop goldfish's commands at random times, type them again, and compare their results with an uninterrupted run.

python experiments/robustness/kills.py --kills 100 --others 20 --seed 0      (2 cores: see README.md; Linux only)

`--kills`: SIGKILL to a child (worker), to the typed command (parent), or to the whole process tree (all). `--others`:
SIGTERM, Ctrl-C twice, and a full disk (a small tmpfs in a mount namespace of its own: `unshare`). The moment is uniform
over the duration of the uninterrupted command. The plan depends on the counts and the seed only;
`--first 0 --last 25` runs a part of it. Writes a row for each case to kills.csv beside itself, or to
`--out`. The exit code is 1 if anything was lost.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from folders import differences, temporaries
from processes import MARK, Command, Lost, full_disk

from goldfish.runs.launch import locked

MODEL = ["model.hidden_size=32", "model.layers=1", "model.heads=2", "model.intermediate_size=64", "threads=1"]
DATA = [
    "data.sequence_length=64", "data.batch_size=4", "data.tokens=10240", "data.tokenizer.vocab_size=512",
    "data.validation_tokens=512", "data.injection.documents=4", "data.injection.never_seen=4",
    "data.injection.document_tokens=32", "data.injection.repeats=10", "evaluation.prefix_tokens=16",
    "evaluation.suffix_tokens=16", "trainer.log_every=2", "trainer.validate_every=8", "trainer.checkpoint_every=4",
    "trainer.memorization_every=5",
]  # fmt: skip
ASKED = [
    "tokenizer.vocab_size=400", "questions.authors=4", "questions.forget_authors=1", "questions.capitals=6",
    "batch_size=4", "answer_tokens=4", "log_every=1", "checkpoint_every=3",
]  # fmt: skip
TRAIN, UNLEARN = ["goldfish-train", *MODEL, *DATA], ["goldfish-unlearn", *MODEL, *ASKED]
PREPARE = ["goldfish-data", *MODEL, *DATA]
SETTINGS = ["evaluation.prefix_tokens=[16,8]", "evaluation.suffix_tokens=8", "strategy=ddp_cpu"]
# Task -> variants; a variant: the command that is stopped, and the commands that must have run before it.
COMMANDS: dict[str, list[tuple[list[str], list[list[str]]]]] = {
    "train": [
        ([*TRAIN, "data.workers=1"], [PREPARE]),
        ([*TRAIN, "strategy=ddp_cpu", "optimizer=adamw", "trainer.micro_batch_size=1"], [PREPARE]),
        ([*TRAIN, "trainer.async_checkpoints=true", "trainer.early_stopping=1", "optimizer.lr=0.3"], [PREPARE]),
    ],
    "prepare": [(PREPARE, [])],
    "evaluate": [(["goldfish-eval", "run=logs/base", *SETTINGS], [[*TRAIN, "run_dir=logs/base"]])],
    "unlearn": [
        (
            [*UNLEARN, "unlearning=npo", "epochs=8"],
            [[*UNLEARN, f"unlearning={one}", "epochs=1"] for one in ("retain_only", "finetune")],
        )
    ],
    "sweep": [
        (
            [TRAIN[0], "-m", *TRAIN[1:], "mask.k=3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
            [PREPARE],
        )
    ],
}
VICTIMS = ("worker", "all", "parent")
OTHERS = ("SIGTERM", "Ctrl-C twice", "full disk")
AGAIN = 0.3  # share of the cases whose second attempt is killed too
COLUMNS = [
    "seed", "number", "task", "variant", "victim", "end", "share", "again", "state", "seconds_to_end", "typed",
    "seconds_of_resume", "equal", "note",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is stopped, how and when. `share`: of the duration; `again`: of the second attempt, None: no kill."""

    number: int
    task: str
    variant: int
    victim: str
    end: str
    share: float
    again: float | None
    pick: float


def plan(kills: int, others: int, seed: int) -> list[Case]:
    """Return all cases. Every task meets every victim and every other end equally often, up to one."""
    draw, cases = random.Random(seed), []
    tasks = [*COMMANDS]
    pairs = [(task, VICTIMS[(turn + place) % 3], "SIGKILL") for turn in range(3) for place, task in enumerate(tasks)]
    asked = [(task, "parent", end) for end in OTHERS for task in tasks]
    for those, count in ((pairs, kills), (asked, others)):
        for index in range(count):
            task, victim, end = those[index % len(those)]
            variant = index // len(those) % len(COMMANDS[task])
            again = draw.random() if draw.random() < AGAIN else None
            cases.append(Case(len(cases), task, variant, victim, end, draw.random(), again, draw.random()))
    return cases


def stop(case: Case, command: Command) -> bool:
    """Stop the command as the case says; return False if it had ended before."""
    if case.end == "SIGTERM":
        return command.signal(command.pid, signal.SIGTERM)
    if case.end == "Ctrl-C twice":
        heard = command.signal(-command.pid, signal.SIGINT)  # the process group, as a terminal does
        time.sleep(1.0)
        command.signal(-command.pid, signal.SIGINT)
        return heard
    if case.victim == "all":
        return command.kill()
    return command.signal(command.pid if case.victim == "parent" else _child(case, command), signal.SIGKILL)


def _child(case: Case, command: Command) -> int:
    """Wait for a child of the command and return one; the command itself if it has none (goldfish-data)."""
    while True:
        children = [pid for pid in command.alive() if pid != command.pid]
        if children or command.ended() or case.task == "prepare":
            return children[int(case.pick * len(children))] if children else command.pid
        time.sleep(0.002)


class Laboratory:
    """Runs cases below `root`. The first process that needs a variant's uninterrupted run makes it there, once."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        root.mkdir(parents=True, exist_ok=True)

    def whole(self, case: Case) -> tuple[Path, Path, float]:
        """Return the folder before the command, the folder after an uninterrupted run, and the seconds that it took."""
        words, preparations = COMMANDS[case.task][case.variant]
        folder = self.root / f"{case.task}-{case.variant}"
        before, seconds = folder.with_suffix(".before"), folder.with_suffix(".seconds")
        with FileLock(folder.with_suffix(".turn")):
            if not seconds.exists():
                before.mkdir()
                for preparation in preparations:
                    self._must(preparation, before)
                shutil.copytree(before, folder)
                seconds.write_text(str(self._must(words, folder)))
        return before, folder, float(seconds.read_text())

    def _must(self, words: list[str], folder: Path) -> float:
        command = Command(words, folder)
        code, said = command.wait()
        if code != 0:
            raise RuntimeError(f"{' '.join(words)}: exit code {code}\n{said}")
        return time.monotonic() - command.started

    def run(self, case: Case) -> dict[str, Any]:
        """Stop, resume, compare; return the row of the csv."""
        before, whole, duration = self.whole(case)
        row: dict[str, Any] = {"seed": self.seed, **vars(case), "typed": 0, "equal": "no", "note": ""}
        row |= {"again": "" if case.again is None else round(case.again, 3)}
        folder, share = self.root / f"case-{case.number}", case.share
        while True:
            with full_disk(folder, case.end == "full disk") as (fill, free):
                shutil.copytree(before, folder, dirs_exist_ok=True)
                command = Command(COMMANDS[case.task][case.variant][0], folder)
                command.sleep_until(share * duration)
                row |= {"share": round(share, 3), "state": _state(folder, before)}
                if command.ended() or not (fill() if case.end == "full disk" else stop(case, command)):
                    command.wait()
                    share *= 0.8  # it was faster than the uninterrupted one: an earlier moment
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                try:
                    self._resume(case, command, duration, free, row)
                    self._check(whole, folder)
                    row["equal"] = "yes"
                    shutil.rmtree(folder, ignore_errors=True)
                except Lost as lost:
                    row["note"] = str(lost)
                return {name: row.get(name, "") for name in COLUMNS}

    def _resume(
        self, case: Case, command: Command, duration: float, free: Callable[[], None], row: dict[str, Any]
    ) -> None:
        """Wait for the end, then type the command until it finishes."""
        stopped = time.monotonic()
        code, said = command.wait()
        row["seconds_to_end"] = round(time.monotonic() - stopped, 1)
        if code is None:
            raise Lost("hung after it was stopped")
        if code and case.end == "full disk" and ("Traceback" in said or "no space left" not in said.lower()):
            row["note"] = "the full disk was not told in words: " + said.strip()[-200:].replace("\n", " | ")
        free()
        again, resumed = case.again, time.monotonic()
        while code != 0 and "already holds" not in said:  # so it says if it was finished when it was stopped
            if row["typed"] == 4:
                raise Lost(f"does not finish: {said.strip()[-400:]}")
            row["typed"] += 1
            command = Command(command.words, command.folder)
            if again is not None:
                command.sleep_until(again * duration)
                command.kill()
                again = None
            code, said = command.wait()
            if code is None:
                raise Lost("the resumed command hung")
        row["seconds_of_resume"] = round(time.monotonic() - resumed, 1)

    def _check(self, whole: Path, folder: Path) -> None:
        if found := differences(whole, folder):
            raise Lost("; ".join(found))
        if left := temporaries(folder):
            raise Lost(f"left behind: {', '.join(left)}")
        held = [path for path in folder.rglob("*.lock") if locked(path)]
        if held:
            raise Lost(f"locked: {', '.join(map(str, held))}")


def _state(folder: Path, before: Path) -> str:
    """Return what the stopped command left in its folder: new files, and the state in progress.json."""
    known = {path.relative_to(before) for path in before.rglob("*")}
    new = [path for path in folder.rglob("*") if path.relative_to(folder) not in known and path.is_file()]
    states = []
    for path in new:
        with suppress(OSError, ValueError):
            if path.name == "progress.json" and "state" in (said := json.loads(path.read_text())):
                states.append(f"{said['state']} {said.get('step', '')}".strip())
    names = sorted({path.name for path in new if path.name not in ("progress.json", ".lock", "job.log")})
    return f"{', '.join(states) or '-'}: {' '.join(names)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=None)
    parser.add_argument("--root", type=Path, help="keeps the uninterrupted runs for the next piece")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    cases = plan(arguments.kills, arguments.others, arguments.seed)[arguments.first : arguments.last]
    if any(case.end == "full disk" for case in cases) and MARK not in os.environ:
        mounts = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *sys.argv]
        os.execvpe(mounts[0], mounts, os.environ | {MARK: "mounts"})
    root, lost = arguments.root or Path(tempfile.mkdtemp(prefix="goldfish-kills-")), 0
    laboratory = Laboratory(root, arguments.seed)
    is_new = not arguments.out.exists()
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for case in cases:
            row = laboratory.run(case)
            writer.writerow(row)
            file.flush()
            lost += row["equal"] != "yes"
            print(*(f"{name}={row[name]}" for name in COLUMNS if name != "state"), flush=True)
    print(f"{len(cases)} cases, {lost} lost; {root}" if lost else f"{len(cases)} cases, nothing lost")
    if not lost and arguments.root is None:
        shutil.rmtree(root)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
