"""Where metrics go while a run trains, and what TensorBoard shows of them side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

if TYPE_CHECKING:
    import pandas as pd

# Chart -> the metrics that it draws over each other (TensorBoard's tab "Custom Scalars").
CHARTS = {
    "exact match": ["memorization/exact_match", "memorization/never_seen_exact_match"],
    "token accuracy": ["memorization/token_accuracy", "memorization/never_seen_token_accuracy"],
    "loss on kept, dropped, all tokens": ["train/loss_kept", "train/loss_dropped", "train/loss_all"],
}
COMPARED = ("exact_match", "rouge_l", "longest_prefix", "never_seen_rouge_l", "val_loss")


class Loggers:
    """CSV always, `tensorboard` if wanted: look with `tensorboard --logdir logs`."""

    def __init__(self, tensorboard: bool = True) -> None:
        self.tensorboard = tensorboard

    def __call__(self, run_dir: Path) -> list[Logger]:
        """Return the loggers. A resumed run gets a CSV file of its own, because Lightning's would delete the first."""
        attempt = len(list((run_dir / "csv").glob("*")))
        loggers: list[Logger] = [
            CSVLogger(run_dir, name="csv", version=f"attempt_{attempt:03d}", flush_logs_every_n_steps=1)
        ]
        if self.tensorboard:
            board = TensorBoardLogger(run_dir, name="tensorboard", version="")
            board.experiment.add_custom_scalars(
                {"goldfish": {name: ["Multiline", tags] for name, tags in CHARTS.items()}}
            )
            loggers.append(board)
        return loggers


def log_hyperparameters(loggers: Sequence[Logger], config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Fill TensorBoard's tab "HParams", where the runs of a sweep are compared, with a finished run.

    Of the frozen `config`: mask and objective with their settings, arm, seed, repeats, tokens, learning rate, model width
    and layers; few, because the tab shows the first five in the alphabet. Of `metrics`: COMPARED.
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
            board.finalize("")  # not "success": that would also write the hyperparameters to a file


def merged_metrics(run_dir: Path) -> "pd.DataFrame":
    """All attempts' metrics by step; where a later attempt did a step again, its entry counts."""
    import pandas as pd  # 0.2 s, once training has ended

    frame = pd.DataFrame({"step": []})
    for path in sorted((run_dir / "csv").glob("*/metrics.csv")):
        attempt = pd.read_csv(path)
        frame = pd.concat([frame[frame["step"] < attempt["step"].min()], attempt], ignore_index=True)
    return frame.groupby("step", as_index=False).last()  # one row a step, whoever logged
