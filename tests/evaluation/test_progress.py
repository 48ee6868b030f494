import time

import pytest

from goldfish.evaluation.progress import TokenProgress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_speed_and_time_left_are_those_of_this_attempt_and_of_all_processes(clock):
    said = []
    progress = TokenProgress(lambda **report: said.append(report), total=1000, kept=200, others=lambda: 100)
    clock[0] += 10
    progress.begin(300)
    progress.count(200)  # within half a second: not told
    clock[0] += 10
    progress.count(50)
    assert [report["done"] for report in said] == [300, 550]
    assert said[-1] == dict(
        state="extracting", done=550, total=1000, unit="tokens", tokens_per_s=17.5, seconds_left=450 / 17.5
    )


def test_a_part_counts_what_was_estimated_whatever_it_took_and_the_end_is_told_at_once(clock):
    said = []
    progress = TokenProgress(lambda **report: said.append(report["done"]), total=200)
    for count in (500, 1):
        progress.begin(100)
        clock[0] += 1
        progress.count(count)
        assert said[-1] == (100 if count == 500 else 101)
        progress.end()
    assert said == [0, 100, 101, 200]


def test_before_anything_is_done_no_speed_is_told(clock):
    said = []
    TokenProgress(lambda **report: said.append(report), total=200, kept=50).report_progress()
    assert said == [dict(state="extracting", done=50, total=200, unit="tokens")]
