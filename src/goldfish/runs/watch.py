"""A live view of runs. It reads the progress files of the jobs, so it works with any launcher and any machine."""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from goldfish.runs.launch import ENDED, log_tail
from goldfish.runs.record import RunDirectory

QUIET_SECONDS = 15.0  # between two printed lines without a terminal
LAST_ENDED = 3  # number of ended runs that are still shown
MANY = 4  # without a terminal, more running runs than this are only counted


class Watch:
    """Show a line for each running run during the `with` block: bar, step, loss, tokens/s and time left.

    `finished_before`: number of the sweep's runs that were finished before and so are not in `run_dirs`. With it the
    sweep's counts and time left are shown, and a failed run is printed with the end of its log. None: a single run.
    """

    def __init__(self, run_dirs: dict[Path, str], console: Console, finished_before: int | None = None) -> None:
        self._console, self._finished_before = console, finished_before
        self._names = {RunDirectory(path): name for path, name in run_dirs.items()}
        self._before = {record: record.progress() for record in self._names}
        self._states: dict[RunDirectory, dict[str, Any]] = {record: {"state": "waiting"} for record in self._names}
        self._since: dict[RunDirectory, float] = {}
        self._durations: list[float] = []
        self._most_at_once = 1
        self._ended: list[RunDirectory] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._terminal if console.is_terminal else self._lines, daemon=True)
        self.failures_shown: set[Path] = set()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def changed_runs(self) -> Iterator[RunDirectory]:
        """Read the runs' reports; yield the runs whose state has changed."""
        for record, last in self._states.items():
            state = self._state(record) if last["state"] != "finished" else last
            self._states[record] = state
            if state["state"] != last["state"]:
                self._keep_time(record, state["state"])
                yield record
        self._most_at_once = max(self._most_at_once, len(self._running()))

    def _state(self, record: RunDirectory) -> dict[str, Any]:
        """Return the run's last report, unless it is that of an earlier attempt."""
        if record.finished:
            return {"state": "finished", "step": 1, "steps": 1}
        progress = record.progress()
        return {"state": "waiting"} if progress == self._before[record] else progress

    def _keep_time(self, record: RunDirectory, state: str) -> None:
        now = time.monotonic()
        if state.startswith("waiting"):
            self._since.pop(record, None)
        elif state not in ENDED:
            self._since.setdefault(record, now)
        else:
            self._ended = [*(other for other in self._ended if other is not record), record]
            started = self._since.pop(record, None)
            if state == "finished" and started is not None:
                self._durations.append(now - started)

    def _running(self) -> list[RunDirectory]:
        return list(self._since)

    def counts(self) -> str:
        """Return how many runs of the sweep are finished, failed, running and waiting, and the time left, as text."""
        states = [state["state"] for state in self._states.values()]
        finished = states.count("finished") + (self._finished_before or 0)
        others = {
            "failed": states.count("failed") + states.count("refused"),
            "interrupted": states.count("interrupted"),
            "running": len(self._since),
            "waiting": sum(state.startswith("waiting") for state in states),
        }
        parts = [f"{finished} of {len(states) + (self._finished_before or 0)} finished"]
        parts += [f"{number} {what}" for what, number in others.items() if number]
        left = self._seconds_left(others["waiting"])
        return ", ".join(parts) + (f"; about {_duration(left)} left" if left else "")

    def _seconds_left(self, waiting: int) -> float | None:
        """Estimate the sweep's seconds left: a run takes as long as finished ones did, or as running ones estimate."""
        now = time.monotonic()
        spent = {record: now - since for record, since in self._since.items()}
        estimated = {record: self._states[record].get("seconds_left", 0.0) for record in spent}
        known = self._durations or [spent[record] + left for record, left in estimated.items() if left]
        if not known:
            return None
        usual = sum(known) / len(known)
        running = sum(max(usual - spent[record], estimated[record]) for record in spent)
        return float(max(0.0, running) + waiting * usual) / self._most_at_once

    def _print_failure(self, record: RunDirectory) -> None:
        """Print why a run of a sweep failed."""
        state = self._states[record]
        if self._finished_before is not None and state["state"] in ("failed", "refused"):
            self.failures_shown.add(record.path)
            tail = log_tail(record.path) if state["state"] == "failed" and not state.get("in_words") else ""
            end = f"\nthe end of {record.path / 'job.log'}:\n{tail}" if tail else ""
            text = f"{state['state']}: {record.path}\n{state.get('error', '')}{end}\n"
            self._console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> Group:
        """Draw the last runs that ended, the running ones and the counts; never higher than the terminal."""
        shown = self._running() if self._finished_before is not None else list(self._names)
        room = max(1, self._console.height - LAST_ENDED - 3)
        rows = Table.grid(padding=(0, 1))
        ended = self._ended[-LAST_ENDED:] if self._finished_before is not None else []
        for record in [*ended, *shown[:room]]:
            state = self._states[record]
            done, total = state.get("step", state.get("done", 0)), state.get("steps", state.get("total", 1))
            rows.add_row(
                Text(self._names[record], no_wrap=True),
                ProgressBar(total, done, width=24),
                Text(_format_state(state), no_wrap=True, overflow="ellipsis"),
            )
        parts: list[Any] = [rows]
        if len(shown) > room:
            parts.append(Text(f"and {len(shown) - room} more running"))
        if self._finished_before is not None:
            parts.append(Text(self.counts()))
        return Group(*parts)

    def _terminal(self) -> None:
        with Live(self, console=self._console, refresh_per_second=4) as live:
            while True:
                done = self._stop.wait(0.5)
                for record in self.changed_runs():
                    self._print_failure(record)
                if done:
                    live.refresh()
                    return

    def _lines(self) -> None:
        last = time.monotonic()
        while True:
            done = self._stop.wait(0.5)
            due = time.monotonic() - last > QUIET_SECONDS
            last = time.monotonic() if due else last
            changed = list(self.changed_runs())
            few = len(self._since) <= MANY
            for record, state in list(self._states.items()):
                start_or_end = record in changed and (state["state"] in (*ENDED, "training") or "GPU" in state["state"])
                if start_or_end or (due and few and ("loss" in state or "total" in state)):
                    self._print(f"{self._names[record]:<16} {_format_state(state)}")
                if record in changed:
                    self._print_failure(record)
            if self._finished_before is not None and (
                due or any(self._states[record]["state"] in ENDED for record in changed)
            ):
                self._print(self.counts())
            if done:
                return

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _format_state(state: dict[str, Any]) -> str:
    """Format one run's state."""
    if not {"loss", "step", "steps", "tokens_per_s", "seconds_left"} <= state.keys():
        done = ""
        if {"done", "total", "unit"} <= state.keys():
            done = f"  {state['done']:,}/{state['total']:,} {state['unit']}"
        pace = f"  {_format_speed(state)}" if {"tokens_per_s", "seconds_left"} <= state.keys() else ""
        return f"{state['state']}{done}{pace}"
    loss = "-" if math.isnan(state["loss"]) else f"{state['loss']:.3f}"
    return f"{state['step']}/{state['steps']}  loss {loss}  {_format_speed(state)}"


def _format_speed(state: dict[str, Any]) -> str:
    return f"{state['tokens_per_s']:,.0f} tokens/s  {_duration(state['seconds_left'])} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
