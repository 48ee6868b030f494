"""A row a run, a row an arm, and what evaluations measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report.small_studies import (
    document,
    interval,
    make_control,
    make_evaluation,
    make_run,
    make_standard,
    make_study,
    measured,
    setting,
)

from goldfish.cli.report import main
from goldfish.report.arms import settings_of
from goldfish.report.finished import collect, evaluations
from goldfish.report.intervals import mean_text
from goldfish.report.tables import pool, summarize, tabulate


def test_rows_fall_from_standard_over_hashed_and_other_masks_to_controls(tmp_path: Path) -> None:
    make_control(tmp_path)
    for strategy, k in (("mile", None), ("hash_table", 4), ("random", 4), ("static", 4), ("hashed", 4), ("hashed", 32)):
        make_run(tmp_path, f"{strategy}_{k}", strategy=strategy, k=k)
    make_standard(tmp_path)
    order = ["standard", "hashed_32", "hashed_4", "static_4", "random_4", "hash_table_4", "mile_None", "control"]
    assert list(summarize(collect([tmp_path]))["run"]) == order


def test_the_control_score_comes_from_the_control_with_the_same_seed(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    make_control(tmp_path, seed=0, rouge_l=0.1)
    make_control(tmp_path, seed=1, rouge_l=0.2)
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.2)


def test_the_control_score_is_the_mean_over_all_controls_when_no_seed_fits(tmp_path: Path) -> None:
    make_run(tmp_path, seed=5)
    make_control(tmp_path, seed=0, rouge_l=0.1)
    make_control(tmp_path, seed=1, rouge_l=0.2)
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.15)


def test_the_control_score_counts_only_the_documents_that_the_run_was_given(tmp_path: Path) -> None:
    make_run(tmp_path, documents=[document(1)])
    make_control(tmp_path, documents=[document(1, rouge_l=0.2), document(2, rouge_l=0.9)])
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.2)


@pytest.mark.parametrize("control", [{"study": "another"}, {"documents": [document(1)]}])
def test_a_control_of_another_study_or_of_fewer_documents_is_no_control(
    tmp_path: Path, control: dict[str, Any]
) -> None:
    make_run(tmp_path)
    make_control(tmp_path, **control)
    assert summarize(collect([tmp_path]))["control_rouge_l"].isna().all()


def test_a_control_has_no_control_score_of_its_own(tmp_path: Path) -> None:
    make_study(tmp_path)
    assert summarize(collect([tmp_path])).set_index("run")["control_rouge_l"].isna().to_dict()["control"]


def test_seeds_and_studies_enter_a_label_only_when_names_alone_are_not_unique(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert list(summarize(collect([tmp_path])).index) == ["hashed_k4"]
    make_run(tmp_path / "a", seed=1)
    assert list(summarize(collect([tmp_path])).index) == ["hashed_k4 seed 0", "hashed_k4 seed 1"]
    make_run(tmp_path / "a", study="other")
    assert summarize(collect([tmp_path])).index[0] == "other/hashed_k4 seed 0"


def test_seeds_of_equal_settings_are_one_arm_with_student_s_interval(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    arms = pool(summarize(collect([tmp_path])))
    assert list(arms.index) == ["hashed k=4"] and arms["seeds"].tolist() == [3]
    reach = 4.302653 * 0.1 / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    assert arms["rouge_l"].iloc[0] == pytest.approx(0.3)
    assert arms["rouge_l_low"].iloc[0] == pytest.approx(0.3 - reach)
    assert arms["rouge_l_high"].iloc[0] == pytest.approx(0.3 + reach)
    assert arms["over"].iloc[0] == "seeds"


def test_seeds_that_begin_from_runs_of_their_own_seed_are_one_arm() -> None:
    one, other = ({"seed": seed, "objective": {"premature": f"logs/premature-seed{seed}"}} for seed in (0, 1))
    assert settings_of(one) == settings_of(other) != settings_of({**other, "objective": {"premature": "logs/other"}})


def test_a_mean_over_seeds_is_written_with_the_reach_of_its_interval() -> None:
    assert mean_text([0.2, 0.3, 0.4]) == "0.3 ± 0.25" and mean_text([1.0, 1.0, math.nan]) == "1"
    assert mean_text([]) == mean_text([math.nan]) == "" and mean_text([269_952, 269_952]) == "269 952"


def test_an_interval_over_seeds_does_not_leave_the_range_of_its_metric(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.0, 1.0)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    arm = pool(summarize(collect([tmp_path]))).iloc[0]
    assert (arm["rouge_l_low"], arm["rouge_l_high"]) == (0.0, 1.0)


def test_a_single_seed_keeps_its_interval_over_documents(tmp_path: Path) -> None:
    measured(make_run(tmp_path))
    arm = pool(summarize(collect([tmp_path]))).iloc[0]
    assert (arm["rouge_l_low"], arm["rouge_l_high"]) == pytest.approx((0.3, 0.5)) and arm["over"] == "documents"


def test_settings_that_differ_make_arms_that_are_named_by_the_difference(tmp_path: Path) -> None:
    for number, h in enumerate((7, 13, 13)):
        make_run(
            tmp_path, f"run{number}", seed=number, config={"mask": {"k": 4, "h": h, "seed": number}, "seed": number}
        )
    assert pool(summarize(collect([tmp_path])))["seeds"].to_dict() == {"hashed k=4 h=7": 1, "hashed k=4 h=13": 2}


def make_swept(root: Path, *overrides: str, k: int = 4, devices: int = 1, seed: int = 0, **config: Any) -> None:
    """A run of a sweep without names, in whose command the overrides stand."""
    strategy = {"accelerator": "cpu", "devices": devices, "strategy": "auto" if devices == 1 else "ddp"}
    command = " ".join(["goldfish-train hydra.mode=RUN study=mine", *overrides, f"seed={seed}"])
    config = {"mask": {"k": k}, "strategy": strategy, "seed": seed, **config}
    name = re.sub(r"\W", "", "".join(overrides)) or "plain"
    make_run(root, name, k=k, seed=seed, config=config, environment={"command": command})


def test_runs_without_names_are_named_by_what_was_typed(tmp_path: Path) -> None:
    for seed in (0, 1):
        for k in (4, 8):
            make_swept(tmp_path, "strategy=single", f"mask.k={k}", k=k, seed=seed)
            make_swept(tmp_path, "strategy=ddp_cpu", f"mask.k={k}", k=k, devices=2, seed=seed)
    frame = summarize(collect([tmp_path]))
    names = {f"hashed k={k} strategy={name}" for k in (4, 8) for name in ("single", "ddp_cpu")}
    assert pool(frame)["seeds"].to_dict() == dict.fromkeys(names, 2)
    assert set(frame["line"]) == {"hashed strategy=single", "hashed strategy=ddp_cpu"}


def test_a_group_is_named_by_its_last_part_and_a_run_in_which_nothing_was_typed_has_the_plain_name(
    tmp_path: Path,
) -> None:
    make_swept(tmp_path)
    make_swept(tmp_path, "mask.k=4", seed=1)  # the default, typed: the same arm
    make_swept(tmp_path, "data/corpus=text", "+data.note='a b'", data={"corpus": {"_target_": "Text", "path": "x"}})
    assert set(pool(summarize(collect([tmp_path]))).index) == {"hashed k=4", "hashed k=4 corpus=text note=a b"}


def test_what_was_typed_alike_is_named_by_its_settings(tmp_path: Path) -> None:
    for tokens in (100, 200):
        make_swept(tmp_path / str(tokens), "model=mine", data={"tokens": tokens})
    make_swept(tmp_path / "typed", "model=mine", "data.tokens=300", data={"tokens": 300})
    names = {f"hashed k=4 tokens={tokens}" for tokens in (100, 200, 300)}
    assert set(pool(summarize(collect([tmp_path]))).index) == names


def test_a_run_that_is_there_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    for study_folder in ("a", "b"):
        make_run(tmp_path / study_folder)
    make_run(tmp_path, seed=1, rouge_l=0.5)
    frame = summarize(collect([tmp_path]))
    assert pool(frame)["rouge_l"].tolist() == [0.4]
    assert list(frame["repeated"]) == [False, True, False]


def test_a_line_over_k_goes_through_arms_whose_budget_changes_with_k(tmp_path: Path) -> None:
    for k in (3, 4):
        make_run(tmp_path, f"k{k}", k=k, config={"mask": {"k": k}, "data": {"tokens": 100 * k}, "seed": 0})
    assert set(summarize(collect([tmp_path]))["line"]) == {"hashed"}
    make_run(tmp_path, "k4_long", k=4, config={"mask": {"k": 4}, "data": {"tokens": 900}, "seed": 0})
    lines = summarize(collect([tmp_path])).set_index("run")["line"]
    assert lines.to_dict() == {f"k{n}": f"hashed tokens={v}" for n, v in (("3", 300), ("4", 400), ("4_long", 900))}


def test_membership_and_divergence_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, auc in enumerate((0.7, 0.9)):
        measured(make_run(tmp_path, seed=seed), auc)
    tables = tabulate(collect([tmp_path]), [])
    (score,) = tables.membership.to_dict("records")
    assert (score["arm"], score["score"], score["seeds"]) == ("hashed k=4", "loss", 2)
    assert score["auc"] == pytest.approx(0.8) and score["auc_high"] == 1.0
    (diverged,) = tables.divergence.to_dict("records")
    assert (diverged["share"], diverged["chance"], diverged["diverged"]) == (0.9, 0.25, 20)


def test_divergence_is_not_told_of_masks_by_position(tmp_path: Path) -> None:
    measured(make_run(tmp_path, strategy="static"))
    assert tabulate(collect([tmp_path]), []).divergence.empty


def test_evaluations_belong_to_the_arm_in_whose_folder_they_lie_and_once_each(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path, seed=seed)
        for name in ("a", "b"):  # the same evaluation twice is no second seed
            swept = [setting(0.2 + 0.2 * seed, prefix_tokens=8), setting(0.1, prefix_tokens=4)]
            make_evaluation(run / "evaluations" / name, swept, run=str(run))
    tables = tabulate(collect([tmp_path]), evaluations([tmp_path]))
    rows = tables.extraction.query("split == 'injected' and prefix_tokens == 8").to_dict("records")
    assert [(row["source"], row["seeds"]) for row in rows] == [("hashed k=4", 2)]
    assert rows[0]["exact_match"] == pytest.approx(0.3)


def test_every_way_to_decode_has_rows_also_one_that_the_report_does_not_know(tmp_path: Path) -> None:
    ways = ["greedy", "sample", "beam", "memfree", "memfree_sample", "memfree_beam", "mine"]
    make_evaluation(tmp_path / "e", [setting(decoding=way) for way in ways], model_folder="models/gpt")
    rows = tabulate([], evaluations([tmp_path])).extraction
    assert list(rows.query("split == 'injected'")["decoding"]) == ways


def test_likeness_mauve_loss_and_benchmarks_are_told_by_arm_over_seeds(tmp_path: Path) -> None:
    for seed, cosine in enumerate((0.4, 0.6)):
        first = setting()
        metrics = first["injected"]["metrics"] | {"cosine": interval(cosine, 0.1, 0.9)}
        first["injected"] = first["injected"] | {"metrics": metrics, "mauve": {"mauve": 0.25}}
        folder = make_evaluation(make_run(tmp_path, seed=seed) / "evaluations" / "e", [first, setting(prefix_tokens=4)])
        summary = json.loads((folder / "summary.json").read_text())
        summary["perplexity"] = {"loss": 4.5, "loss_low": 4.0, "loss_high": 5.0}
        summary["tasks"] = {"capitals": {"samples": 100, "acc": 0.7 + 0.1 * seed, "acc_stderr": 0.05}} if seed else None
        (folder / "summary.json").write_text(json.dumps({key: one for key, one in summary.items() if one is not None}))
    make_evaluation(tmp_path / "plain", [setting()], model_folder="models/gpt")  # has none of these: no row
    (row,) = tabulate(collect([tmp_path]), evaluations([tmp_path])).utility.to_dict("records")
    assert (row["source"], row["seeds"]) == ("hashed k=4", 2)
    assert row["cosine, injected"] == pytest.approx(0.5) and row["cosine, injected_low"] < 0.4
    assert (row["MAUVE, injected"], row["loss (nats/token)"]) == (0.25, 4.5)
    assert row["capitals: acc"] == pytest.approx(0.8) and row["capitals: acc_high"] == pytest.approx(0.8 + 1.96 * 0.05)
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Likeness, loss and benchmarks" in html and ">capitals: acc<" in html
