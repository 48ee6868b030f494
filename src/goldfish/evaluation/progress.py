"""How far an evaluation is, in tokens that the model reads or decodes."""

import time
from collections.abc import Callable

CountTokens = Callable[[int], None]  # is told how many more tokens the model read or decoded


class TokenProgress:
    """Counts tokens against an estimate and tells `report`, at most twice a second, how far the evaluation is.

    `total`: tokens of all parts, estimated; `kept`: of these the ones of an earlier attempt, which do not count as speed;
    `others`: returns what the other processes have done. `report` is called with state, done, total, unit, tokens_per_s
    and seconds_left, the last two once they are known.
    """

    def __init__(
        self, report: Callable[..., None], total: int, kept: int = 0, others: Callable[[], int] = lambda: 0
    ) -> None:
        self._report, self._total, self._kept, self._others = report, total, kept, others
        self._done = self._end = 0  # of this process and attempt; `_end` is where the part in work ends
        self._started, self._last = time.perf_counter(), 0.0

    def begin(self, tokens: int) -> None:
        """Begin a part of about so many tokens."""
        self._end = self._done + tokens
        self.tell()

    def count(self, more: int) -> None:
        """Count tokens of the part in work, no more than were estimated."""
        self._done = min(self._end, self._done + more)
        self.tell()

    def end(self) -> None:
        """End the part in work: what was estimated and not needed counts as done."""
        self._done = self._end
        self.tell(at_once=self._kept + self._done >= self._total)

    def tell(self, at_once: bool = False) -> None:
        """Report, if half a second has passed since the last report."""
        now = time.perf_counter()
        if now - self._last < 0.5 and not at_once:
            return
        self._last = now
        fresh = self._done + self._others()
        pace = {}
        if (speed := fresh / max(1e-9, now - self._started)) > 0:
            pace = {"tokens_per_s": speed, "seconds_left": max(0, self._total - self._kept - fresh) / speed}
        self._report(state="extracting", done=self._kept + fresh, total=self._total, unit="tokens", **pace)
