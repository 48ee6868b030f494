"""Where metrics go while a run trains."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

if TYPE_CHECKING:
    import pandas as pd


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
            loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version=""))
        return loggers


def merged_metrics(run_dir: Path) -> "pd.DataFrame":
    """All attempts' metrics by step; where a later attempt did a step again, its entry counts."""
    import pandas as pd  # 0.2 s, once training has ended

    frame = pd.DataFrame({"step": []})
    for path in sorted((run_dir / "csv").glob("*/metrics.csv")):
        attempt = pd.read_csv(path)
        frame = pd.concat([frame[frame["step"] < attempt["step"].min()], attempt], ignore_index=True)
    return frame.groupby("step", as_index=False).last()  # one row a step, whoever logged
