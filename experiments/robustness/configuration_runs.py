"""Run the configurations of configuration_cases.py and judge the outcome of each."""

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from configuration_cases import PARTS, Case
from omegaconf import OmegaConf

from goldfish.cli import evaluate
from goldfish.cli.errors import message_of
from goldfish.cli.train import folder_of
from goldfish.config import ConfigError, build
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.jobs.train import run as train
from goldfish.jobs.unlearn import UnlearningJob
from goldfish.jobs.unlearn import run as unlearn
from goldfish.runs.record import RunDirectory, RunDirectoryError

MOST_WORK = 30_000  # tokens that a case may train on and decode, else it is built and not run
WHOLE = ("config.yaml", "summary.json", "metrics.csv", "exposures.csv", "documents.jsonl", "data.json", "model")
# A message that says what to do has one of these.
HELPS = ("must", "type ", "give ", "allowed", "lower ", "raise ", "unknown key", "at most", "at least", "needs", "did you mean")  # fmt: skip


class Workspace:
    """A folder with what the cases need: a little text, its prepared form, and a finished run for goldfish-eval."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = ("train",)) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(400)]
        text = "\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(60))
        (folder / "text.txt").write_text(text)
        if "eval" in commands and not (folder / "run" / "result.json").exists():
            with contextlib.chdir(folder):
                config = Case("train", (), (("run_dir", "run"),)).config()
                RunDirectory(Path("run")).claim(config)
                train(config, Path("run"), "command")

    def verdict(self, case: Case, number: int) -> tuple[str, str]:
        """Return the outcome of a case and its message: finished, refused, diverged, not run, or a fault."""
        folder = self.folder / f"case{number}"
        folder.mkdir()
        for name in ("text.txt", "logs", "run"):
            if (self.folder / name).exists():
                (folder / name).symlink_to(self.folder / name)
        try:
            with contextlib.chdir(folder):
                return self._verdict(case)
        finally:
            torch.use_deterministic_algorithms(False)

    def _verdict(self, case: Case) -> tuple[str, str]:
        config, run_dir = case.config(), None
        own = "out" if case.command == "eval" else "log_dir"  # of this case alone; the prepared text is shared
        config |= {} if own in dict(case.changes) else {own: "own"}
        try:
            if case.command == "eval":
                work = _work(build(EvaluationJob, config).evaluation, 2)
                if work <= MOST_WORK and build(EvaluationJob, config).processes == 1:
                    run_dir = build(EvaluationJob, config).out
                    evaluate._task(OmegaConf.create(config))
            else:
                run_dir = folder_of(config)
                work = _work_of(build(PARTS[case.command][0], config))
                if work <= MOST_WORK:
                    try:
                        RunDirectory(run_dir).claim(config)
                    except OSError as error:
                        return _told(message_of(error), case, None)
                    (train if case.command == "train" else unlearn)(config, run_dir, "command")
        except (ConfigError, RunDirectoryError) as error:
            return _told(str(error), case, run_dir)
        except (ValueError, OSError) as error:  # goldfish-eval tells both in words
            if case.command == "eval":
                return _told(message_of(error), case, None)
            return f"FAULT: {type(error).__name__}", str(error)
        except FloatingPointError as error:
            return "diverged", str(error)
        except BaseException as error:
            return f"FAULT: {type(error).__name__}", str(error)
        if work > MOST_WORK:
            return "accepted, too much work", f"{work:,} tokens"
        if run_dir is None:
            return "accepted, several processes", ""
        return _complete(case, run_dir)


def _work_of(job: Any) -> int:
    """Estimate the tokens that a run trains on and decodes; several processes count as too much work."""
    if job.strategy.processes != 1 or job.strategy.compile:
        return 1 << 60
    if isinstance(job, UnlearningJob):
        people, layers = getattr(job.questions, "authors", 0) * 10, job.task.shape.num_hidden_layers if job.model else 1
        return layers * people * (20 * job.epochs + job.answer_tokens)
    steps = job.trainer.steps(job.data.steps)
    if job.data.max_supervised_tokens:
        steps = max(steps, 2 * job.data.max_supervised_tokens // (job.data.sequence_length * job.data.batch_size))
    documents = job.data.injection.documents + job.data.injection.never_seen
    models = (
        job.shape.num_hidden_layers * (1 + job.shape.hidden_size // 1000) * (1 + job.shape.intermediate_size // 1000)
    )
    trained = steps * job.data.batch_size * job.data.sequence_length + job.data.validation_tokens
    return models * (trained + _work(job.evaluation, documents)) + 50 * (job.data.workers)


def _work(evaluation: Any, documents: int) -> int:
    tries = {"sample": evaluation.samples, "beam": 2 * evaluation.beams}
    return sum(
        documents * setting.suffix_tokens * max(tries.get(setting.decoding.rpartition("_")[2], 1), 1)
        for setting in evaluation.settings
    )


def _told(message: str, case: Case, run_dir: Path | None) -> tuple[str, str]:
    """Check that a refusal names a key, what is allowed and what to type, and leaves no result."""
    names = {part for key, _ in case.changes for part in key.split(".")} | {o.split("=")[0] for o in case.overrides}
    if "cannot be built from these values" in message:
        return "FAULT: unexpected exception of a constructor", message
    names |= {"model"} & {name.removesuffix("_folder") for name in names}
    names |= {repr(value)[1:60] for _, value in case.changes if isinstance(value, str)}
    if not any(name.rpartition("/")[2] in message for name in names):
        return "FAULT: message names no changed key", message
    if not any(word in message.lower() for word in HELPS):
        return "FAULT: message says not what is allowed", message
    if run_dir is not None and os.path.exists(run_dir / "result.json") and case.command != "eval":
        return "FAULT: a refused run has a result", message
    return "refused", message


def _complete(case: Case, run_dir: Path) -> tuple[str, str]:
    """Check that every file of a finished run exists and every number in it is finite."""
    files = {"train": ("result.json", *WHOLE), "eval": ("summary.json",), "unlearn": ("result.json", "answers.parquet")}
    if missing := [name for name in files[case.command] if not (run_dir / name).exists()]:
        return "FAULT: half-written folder", ", ".join(missing)
    for path in sorted(run_dir.glob("*.json")):
        wrong: list[str] = []
        json.loads(path.read_text(), parse_constant=wrong.append)
        if wrong:
            return f"FAULT: {wrong[0]} in {path.name}", ""
    return "finished", ""
