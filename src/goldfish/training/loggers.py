"""Write metrics during training, and configure which of them TensorBoard shows side by side."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from goldfish.tools.owner import owned
from goldfish.tools.writing import write_atomically

if TYPE_CHECKING:
    import pandas as pd

# Chart -> the metrics that it draws together (TensorBoard's tab "Custom Scalars").
CHARTS = {
    "exact match": ["memorization/exact_match", "memorization/never_seen_exact_match"],
    "token accuracy": ["memorization/token_accuracy", "memorization/never_seen_token_accuracy"],
    "loss on kept, dropped, all tokens": ["train/loss_kept", "train/loss_dropped", "train/loss_all"],
}
COMPARED = ("exact_match", "rouge_l", "longest_prefix", "never_seen_rouge_l", "val_loss")


class _WholeCsv(ExperimentWriter):
    """Rewrite the file atomically for new columns. Lightning empties it first, so a kill would lose all rows."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue())


class WholeCsvLogger(CSVLogger):
    """Use Lightning's CSVLogger so that a kill leaves the file as it was after some step."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer of the file; only the first process writes."""
        if self._experiment is None:
            self._experiment = _WholeCsv(log_dir=self.log_dir)
        return self._experiment


class Loggers:
    """Log to CSV, and with `tensorboard` also to TensorBoard; view it with `tensorboard --logdir logs`."""

    def __init__(self, tensorboard: bool = True) -> None:
        self.tensorboard = tensorboard

    def __call__(self, run_dir: Path) -> list[Logger]:
        """Return the loggers. A resumed run gets its own CSV file, because Lightning would delete the first one."""
        for before in (attempts := list((run_dir / "csv").glob("*"))):
            owned(before / "metrics.csv")  # removes the temporary files of a killed process
        loggers: list[Logger] = [
            WholeCsvLogger(run_dir, name="csv", version=f"attempt_{len(attempts):03d}", flush_logs_every_n_steps=1)
        ]
        if self.tensorboard:
            board = TensorBoardLogger(run_dir, name="tensorboard", version="")
            board.experiment.add_custom_scalars(
                {"goldfish": {name: ["Multiline", tags] for name, tags in CHARTS.items()}}
            )
            loggers.append(board)
        return loggers


def log_hyperparameters(
    loggers: Sequence[Logger], config: Mapping[str, Any], metrics: Mapping[str, float | None]
) -> None:
    """Add a finished run to TensorBoard's tab "HParams", which compares the runs of a sweep.

    From the frozen `config`: mask and objective with their settings, arm, seed, repeats, tokens, learning rate, model
    width and layers. They are few, because the tab shows the alphabetically first five. From `metrics`: COMPARED.
    """
    groups = ("mask", "objective")
    shown = {key: value for group in groups for key, value in config[group].items() if key not in ("_target_", "seed")}
    shown |= {group: config[group]["_target_"].rpartition(".")[2] for group in groups}
    shown |= {"arm": config.get("arm"), "seed": config["seed"], "lr": config["optimizer"].get("lr")}
    shown |= {"repeats": config["data"]["injection"]["repeats"], "tokens": config["data"]["tokens"]}
    shown |= {key: config["model"].get(key) for key in ("hidden_size", "layers")}
    for board in loggers:
        if isinstance(board, TensorBoardLogger):
            board.log_hyperparams(shown, {f"result/{name}": metrics[name] for name in COMPARED if name in metrics})
            board.finalize("")  # "success" would also write the hyperparameters to a file


def merged_metrics(run_dir: Path) -> "pd.DataFrame":
    """Return all attempts' metrics by step, columns sorted. If an attempt repeats a step, the later entry counts."""
    import pandas as pd  # imported here: it takes 0.2 s, and training does not need it

    frame = pd.DataFrame({"step": []})
    for path in sorted((run_dir / "csv").glob("*/metrics.csv")):
        # A kill may leave a half-written line; it is skipped, so that it does not fail the run.
        attempt = pd.read_csv(path, on_bad_lines="skip", encoding_errors="replace") if path.stat().st_size else frame
        if "step" not in attempt:
            continue
        attempt = attempt.apply(pd.to_numeric, errors="coerce").dropna(subset="step")
        frame = pd.concat([frame[frame["step"] < attempt["step"].min()], attempt], ignore_index=True)
    rows = frame.groupby("step", as_index=False).last()  # one row a step, whoever logged
    return rows[["step", *sorted(rows.columns.drop("step"))]]
