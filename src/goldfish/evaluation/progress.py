"""Report the progress of an evaluation in tokens that the model reads or decodes."""

import time
from collections.abc import Callable

CountTokens = Callable[[int], None]  # called with the number of tokens that a pass read or decoded


class TokenProgress:
    """Count tokens against an estimate and call `report` with the progress, at most twice a second.

    `total`: estimated tokens of all parts. `kept`: tokens of these from an earlier attempt, which do not count for the
    speed. `others`: returns the tokens done by other processes. `report` gets state, done, total, unit and, once they
    are known, tokens_per_s and seconds_left.
    """

    def __init__(
        self, report: Callable[..., None], total: int, kept: int = 0, others: Callable[[], int] = lambda: 0
    ) -> None:
        self._report, self._total, self._kept, self._others = report, total, kept, others
        self._done = self._end = 0  # of this process and attempt; `_end`: where the current part ends
        self._started, self._last = time.perf_counter(), 0.0

    def begin(self, tokens: int) -> None:
        """Begin a part of about `tokens` tokens."""
        self._end = self._done + tokens
        self.report_progress()

    def count(self, more: int) -> None:
        """Count `more` tokens of the current part, at most its estimate."""
        self._done = min(self._end, self._done + more)
        self.report_progress()

    def end(self) -> None:
        """End the current part; its whole estimate counts as done."""
        self._done = self._end
        self.report_progress(force=self._kept + self._done >= self._total)

    def report_progress(self, force: bool = False) -> None:
        """Call `report` if half a second has passed since the last call, or if `force`."""
        now = time.perf_counter()
        if now - self._last < 0.5 and not force:
            return
        self._last = now
        fresh = self._done + self._others()
        pace = {}
        if (speed := fresh / max(1e-9, now - self._started)) > 0:
            pace = {"tokens_per_s": speed, "seconds_left": max(0, self._total - self._kept - fresh) / speed}
        self._report(state="extracting", done=self._kept + fresh, total=self._total, unit="tokens", **pace)
