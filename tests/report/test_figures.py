"""What the figures show, and which are drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from report.small_studies import make_evaluation, make_run, make_standard, make_study, measured, page, setting

from goldfish.cli.report import main
from goldfish.report import drawings, evaluation_figures, training_figures
from goldfish.report.finished import collect, evaluations
from goldfish.report.tables import pool, summarize, tabulate


def test_a_sweep_is_drawn_over_each_value_at_the_first_of_the_others(tmp_path: Path) -> None:
    grid = [setting(0.1 * p, prefix_tokens=p, edit_rate=e) for p in (8, 4) for e in (0.0, 0.3)]
    make_evaluation(tmp_path / "e", grid, model_folder="models/gpt", documents="d.jsonl")
    figure = evaluation_figures.extraction_sweeps(tabulate([], evaluations([tmp_path])).extraction)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes[::2]] == [
        "prefix (tokens)",
        "edited share of the prompt's tokens",
    ]
    prefix = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in prefix] == [[4, 8]]
    assert figure.legends[0].texts[0].get_text() == "gpt"


def test_prompts_without_the_separator_are_an_axis_and_older_summaries_all_had_it(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "old", [setting(0.4)], model_folder="models/old")
    make_evaluation(tmp_path / "e", [setting(0.9), setting(0.3, bos="none")], model_folder="models/gpt")
    tables = tabulate([], evaluations([tmp_path]))
    rows = tables.extraction.query("split == 'injected'")[["source", "bos", "exact_match"]]
    assert sorted(rows.values.tolist()) == [["gpt", "document", 0.9], ["gpt", "none", 0.3], ["old", "document", 0.4]]
    figure = evaluation_figures.extraction_sweeps(tables.extraction)
    assert figure is not None and [axes.get_xlabel() for axes in figure.axes] == ["separator before the prompt"] * 2
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert re.search(r"<th[^>]*>(<button[^>]*>)?bos", html)


def test_figures_without_data_are_left_out_and_an_earlier_one_is_removed(tmp_path: Path) -> None:
    page(make_study(tmp_path))
    for folder in tmp_path.glob("study-*"):
        (folder / "metrics.csv").unlink()
    (tmp_path / "study-hashed_k4-0" / "result.json").unlink()
    (tmp_path / "out" / "figures" / "mine.svg").write_text("<svg/>")
    page(tmp_path)
    left = {file.stem for file in (tmp_path / "out" / "figures").iterdir()}
    assert left == {"rouge_l_histograms", "memorization_against_validation_loss", "mine"}
    assert {file.suffix for file in (tmp_path / "out" / "figures").iterdir()} == {".svg", ".png"}


def test_the_standard_loss_stands_right_of_every_k_and_the_control_is_a_line(tmp_path: Path) -> None:
    make_run(tmp_path, "hashed_k128", k=128, rouge_l=0.9)
    frame = summarize(collect([make_study(tmp_path)]))
    figure = drawings.memorization_against_k(pool(frame), frame)
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert list(lines["hashed"].get_xdata()) == [2, 7]
    assert list(lines["hashed"].get_ydata()) == [0.3, 0.9]
    assert min(lines["standard"].get_xdata()) > 7
    assert set(lines["control: never saw these documents"].get_ydata()) == {0.12}
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["4", "128", "∞\nstandard"]


def test_names_in_the_scatter_never_cover_each_other(tmp_path: Path) -> None:
    for index in range(12):
        make_run(tmp_path, f"arm_number_{index}", arm=f"arm_number_{index}", val_loss=5.3 + 0.001 * (index % 4))
    frame = summarize(collect([tmp_path]))
    figure = drawings.memorization_against_validation_loss(pool(frame), frame)
    assert figure is not None
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 12
    assert not any(box.count_overlaps(boxes[:index]) for index, box in enumerate(boxes))


def test_long_logs_are_averaged_down_to_a_few_hundred_points(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    table = pd.DataFrame({"step": range(10_000), "train/loss_kept": [1.0, 3.0] * 5_000})
    (folder / "metrics.csv").write_text(table.to_csv(index=False))
    figure = training_figures.training_curves(tabulate(collect([tmp_path]), []))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert 100 <= len(line.get_xdata()) <= 150
    assert list(line.get_ydata()) == pytest.approx([2.0] * len(line.get_ydata()), abs=0.1)


def test_training_curves_are_means_over_seeds_with_a_band(tmp_path: Path) -> None:
    for seed, loss in enumerate((7.0, 8.0)):
        (make_run(tmp_path, seed=seed) / "metrics.csv").write_text(f"step,train/loss_kept\n0,{loss}\n")
    figure = training_figures.training_curves(tabulate(collect([tmp_path]), []))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [7.5] and len(figure.axes[0].collections) == 1


def test_runs_that_saw_their_documents_in_the_same_order_share_a_timeline(tmp_path: Path) -> None:
    measured(make_standard(tmp_path))
    measured(make_run(tmp_path))
    (measured(make_run(tmp_path, "other", k=8)) / "exposures.csv").write_text("document,step\na,5\n")
    figure = training_figures.exposures(tabulate(collect([tmp_path]), []))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [
        "standard, hashed k=4: 3 exposures",
        "hashed k=8: 1 exposures",
    ]
