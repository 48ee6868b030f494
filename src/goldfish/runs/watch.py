"""A live view of runs: it reads the progress files that the jobs write, so any launcher and any machine will do."""

import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from goldfish.runs.record import RunDirectory

QUIET_SECONDS = 15.0  # between two lines where there is no terminal to draw on


class Watch:
    """Shows a line for each run while the `with` block lasts: bar, step, loss, tokens/s and time left."""

    def __init__(self, run_dirs: dict[Path, str], console: Console) -> None:
        self._console = console
        self._records = {RunDirectory(path): name for path, name in run_dirs.items()}
        self._done = threading.Event()
        self._since = time.time()
        self._thread = threading.Thread(target=self._terminal if console.is_terminal else self._lines, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _state(self, record: RunDirectory) -> dict[str, Any]:
        """What the run last said, unless that was said by an earlier attempt."""
        if record.finished:
            return {"state": "finished", "step": 1, "steps": 1}
        progress = record.progress()
        return progress if progress.get("time", 0) >= self._since else {"state": "waiting"}

    def _terminal(self) -> None:
        columns = [
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
        ]
        with Progress(*columns, console=self._console, refresh_per_second=4) as bars:
            tasks = {record: bars.add_task(name, total=1, line="") for record, name in self._records.items()}
            while True:
                done = self._done.wait(0.25)
                for record, task in tasks.items():
                    state = self._state(record)
                    bars.update(
                        task,
                        completed=state.get("step", state.get("done", 0)),
                        total=state.get("steps", state.get("total", 1)),
                        line=_line(state),
                    )
                if done:
                    return

    def _lines(self) -> None:
        told: dict[RunDirectory, str] = {}
        last = time.time()
        while True:
            done = self._done.wait(0.5)
            due = time.time() - last > QUIET_SECONDS
            last = time.time() if due else last
            for record, name in self._records.items():
                state = self._state(record)
                changed = state["state"] != told.get(record, "waiting")
                if (changed and state["state"] in ("training", "finished", "failed", "interrupted")) or (
                    due and ("loss" in state or "total" in state)
                ):
                    self._console.print(f"{name:<16} {_line(state)}", markup=False, highlight=False)
                told[record] = state["state"]
            if done:
                return


def _line(state: dict[str, Any]) -> str:
    """One run's state in words."""
    if "loss" not in state:
        done = f"  {state['done']:,}/{state['total']:,} {state['unit']}" if "total" in state else ""
        return f"{state['state']}{done}"
    loss = "-" if math.isnan(state["loss"]) else f"{state['loss']:.3f}"
    return (
        f"{state['step']}/{state['steps']}  loss {loss}  {state['tokens_per_s']:,.0f} tokens/s  "
        f"{_duration(state['seconds_left'])} left"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
