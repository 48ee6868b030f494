"""Write the report on finished runs: tables (CSV, Parquet, LaTeX), figures (SVG, PNG) and a self-contained page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goldfish.report.finished import Evaluation, Run, evaluations
from goldfish.report.tables import Tables, pool, tabulate
from goldfish.tools.writing import write_atomically, write_rows

if TYPE_CHECKING:
    from goldfish.report.figures import Drawing

# Headings and formats for a terminal of 80 columns.
_PRINTED = {
    "run": ("run", "{}"),
    "k": ("k", "{}"),
    "seeds": ("seeds", "{}"),
    "exact_match": ("exact", "{:.2f}"),
    "rouge_l": ("RougeL", "{:.2f}"),
    "control_rouge_l": ("control", "{:.2f}"),
    "longest_prefix": ("prefix", "{:.1f}"),
    "val_loss": ("val loss", "{:.3f}"),
    "supervised_tokens": ("supervised", "{:,.0f}"),
    "seconds": ("seconds", "{:,.1f}"),
}
_LATEX = {
    "seeds": ("seeds", "{}"),
    "exact_match": ("exact match", "{:.2f}"),
    "rouge_l": ("RougeL", "{:.2f}"),
    "control_rouge_l": ("RougeL, control", "{:.2f}"),
    "longest_prefix": ("longest prefix", "{:.1f}"),
    "val_loss": ("validation loss", "{:.3f}"),
    "supervised_tokens": ("supervised tokens", "{:,.0f}"),
}


class ReportPaths(NamedTuple):
    """The files of a report that are printed."""

    csv: Path
    html: Path


def write_report(
    runs: Sequence[Run], out_dir: Path, title: str, evaluated: Sequence[Evaluation] | None = None
) -> ReportPaths:
    """Write the report into `out_dir`, each file atomically: report.html; summary.csv and .parquet (a row for each run);
    arms.csv and summary.tex (a row for each arm, with intervals); figures/*.svg and *.png.

    `evaluated`: the evaluations to include; None = those in the runs' folders.
    """
    from goldfish.report import drawings, page

    if evaluated is None:
        evaluated = evaluations([run.dir for run in runs])
    tables = tabulate(runs, evaluated)
    folders = [Path(os.path.relpath(run.dir, out_dir)).as_posix() for run in tables.labels.values()]
    tables = tables._replace(runs=tables.runs.assign(run_dir=folders))
    figures = drawings.draw(tables)
    paths = ReportPaths(out_dir / "summary.csv", out_dir / "report.html")
    _write_figures(figures, drawings.NAMES, out_dir / "figures")
    write_atomically(paths.csv, _csv(tables.runs))
    # Plain objects, so that a missing k is null and not nan.
    plain: Any = tables.runs.astype(object).where(tables.runs.notna(), None).to_dict("records")
    write_rows(out_dir / "summary.parquet", plain)
    write_atomically(out_dir / "arms.csv", _csv(tables.arms.rename_axis("name").reset_index()))
    write_atomically(out_dir / "summary.tex", latex(tables))
    write_atomically(paths.html, page.render(tables, figures, title))
    return paths


def print_summary(frame: pd.DataFrame, paths: ReportPaths | None, console: Console) -> None:
    """Print the summary, a row for each arm (± half of the interval over its seeds), and the paths of the report."""
    arms = pool(frame)
    several = bool((arms["seeds"] > 1).any())
    table = Table(box=None, header_style="bold")
    left_out = ("supervised_tokens", "seconds") if several else ("seeds",)  # so that lines have at most 80 columns
    shown = {name: how for name, how in _PRINTED.items() if name not in left_out}
    for key, (heading, _) in shown.items():
        # A long name is wrapped; a number is never cut.
        table.add_column(heading, justify="left" if key == "run" else "right", no_wrap=key != "run", overflow="fold")
    names = frame[["group", "run"]].drop_duplicates()
    unique = ~(names.duplicated("group", keep=False) | names.duplicated("run", keep=False))
    run_of: dict[Any, str] = dict(names[unique].to_numpy())  # arms whose runs share a name that no other arm has
    for name, row in arms.iterrows():
        values = {**row, "run": run_of.get(name, name)}
        cells = [_text(values, key, form) for key, (_, form) in shown.items()]
        table.add_row(*map(Text, cells))  # Text, since the name of a run may be "[red]"
    console.print(table, width=console.width if console.is_terminal else 120, crop=False)
    if several:
        console.print("±: half of the 95 % interval over seeds (Student's t)", style="dim", highlight=False)
    for path in paths or ():
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def latex(tables: Tables) -> str:
    """Return the arms as a LaTeX table for the package booktabs: mean, and the interval in brackets."""
    shown = {name: how for name, how in _LATEX.items() if name == "seeds" or tables.arms[name].notna().any()}
    rows = [
        ["".join(letter for letter in str(name) if letter.isprintable())]
        + [_text(dict(row), key, form, brackets=True) for key, (_, form) in shown.items()]
        for name, row in tables.arms.iterrows()
    ]
    frame = pd.DataFrame(rows, columns=["arm", *(heading for heading, _ in shown.values())])
    over = sorted({str(over) for over in tables.arms["over"] if over})
    caption = "Brackets: 95\\% intervals over " + (" or ".join(over) or "seeds") + "."
    text: str = frame.to_latex(index=False, escape=True, column_format="l" + "r" * len(shown), caption=caption)
    return "% \\usepackage{booktabs}\n" + text


def _text(values: Mapping[Any, Any], name: str, form: str, brackets: bool = False) -> str:
    if pd.isna(values[name]):
        return "--" if brackets else "—"
    text = form.format(values[name])
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    if low is None or pd.isna(low):
        return text
    if brackets:
        return f"{text} [{form.format(low)}, {form.format(high)}]"
    return f"{text}±{form.format((high - low) / 2)}" if values["over"] == "seeds" else text


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _write_figures(figures: dict[str, Drawing], names: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for ending, content in zip(("svg", "png"), figures.get(name, (None, None)), strict=True):
            if content is None:
                (folder / f"{name}.{ending}").unlink(missing_ok=True)  # written by an earlier report, no longer valid
            else:
                write_atomically(folder / f"{name}.{ending}", content)
