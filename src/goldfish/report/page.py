"""The page: one self-contained HTML file, which is not allowed to load anything."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from goldfish.report import figures, findings
from goldfish.report.figures import Drawing
from goldfish.report.tables import Tables, added_metrics

_TEMPLATES = Path(__file__).parent / "templates"
_DOCUMENT_BYTES = 3_000_000  # of all runs' documents together, so that the page opens quickly
_PREFIX_CHARACTERS = 400
# Heading and format of the columns that are shown.
_SHOWN = {
    "seeds": ("seeds", "{}"),
    "k": ("k", "{}"),
    "h": ("h", "{}"),
    "exact_match": ("exact match", "{:.2f}"),
    "rouge_l": ("RougeL", "{:.2f}"),
    "control_rouge_l": ("RougeL, control", "{:.2f}"),
    "never_seen_rouge_l": ("RougeL, never seen", "{:.2f}"),
    "longest_prefix": ("longest prefix (tokens)", "{:.1f}"),
    "val_loss": ("validation loss (nats/token)", "{:.3f}"),
    "input_tokens": ("input tokens", "{:,.0f}"),
    "supervised_tokens": ("supervised tokens", "{:,.0f}"),
    "seconds": ("seconds", "{:,.0f}"),
}
_FIRST = ("memorization_against_k", "memorization_against_validation_loss", "rouge_l_histograms")
_MEMBERSHIP = {"auc": ("AUC", "{:.2f}"), "tpr": ("true positives at 1 % false positives", "{:.2f}")}
_DIVERGENCE = {"share": ("on a dropped position", "{:.2f}"), "chance": ("chance", "{:.2f}")}
_EXTRACTION = {"exact_match": ("exact match", "{:.2f}"), "rouge_l": ("RougeL", "{:.2f}")}


def render(tables: Tables, drawings: Mapping[str, Drawing], title: str) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # names, configurations and generated text are not trusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    first = next((name for name in _FIRST if name in drawings), None)
    frame, labels = tables.runs, tables.labels
    documents, note = _documents(tables)
    return environment.get_template("report.html.j2").render(
        title=title,
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        compared=findings.compared(tables) if labels else "",
        verdicts=list(findings.verdicts(frame, labels)),
        warnings=list(findings.warnings(tables)) if labels else [],
        first=first,
        summary=_summary(tables),
        over=sorted({str(over) for over in tables.arms["over"] if over}, reverse=True),
        drawings={name: _inline(drawing.svg) for name, drawing in drawings.items()},
        membership=_table(tables.membership, ("arm", "score", "seeds", "members", "non_members"), _MEMBERSHIP),
        divergence=_table(tables.divergence, ("arm", "seeds", "diverged"), _DIVERGENCE),
        extraction=_table(_without_constants(tables.extraction), (), _EXTRACTION),
        utility=_utility(tables.utility),
        documents=Markup(_json(documents)),
        documents_note=note,
        differences=findings.config_differences(tables.of),
        arms=list(tables.of),
        environments=findings.environments(labels),
        commands=[(label, frame.at[label, "run_dir"], run.environment) for label, run in labels.items()],
    )


def _summary(tables: Tables) -> dict[str, Any]:
    """Return the headings, and for each arm its row, followed by the rows of its seeds if it has several."""
    arms, runs = tables.arms, tables.runs
    constant = [name for name in ("seeds", "h", "input_tokens") if name in arms and arms[name].nunique() < 2]
    if (arms["seeds"] > 1).any():
        constant = [name for name in constant if name != "seeds"]
    added = {name: (name.replace("_", " "), "{:.3g}") for name in added_metrics(runs)}
    shown = {
        name: how
        for name, how in {**_SHOWN, **added}.items()
        if name not in constant and (name not in arms or arms[name].notna().any())
    }
    groups = []
    for name, arm in arms.iterrows():
        own = runs[runs["group"] == name]
        rows = [[_name(str(name)), *(_cell(arm, key, form) for key, (_, form) in shown.items())]]
        if len(own) > 1:
            for label, run in own.iterrows():
                values = run.drop([key for key in run.index if key.endswith(("_low", "_high"))])
                values["seeds"] = "twice" if run["repeated"] else f"seed {run['seed']}"
                rows.append([_name(str(label)), *(_cell(values, key, form) for key, (_, form) in shown.items())])
        groups.append(rows)
    return {"headings": ["arm", *(heading for heading, _ in shown.values())], "groups": groups}


def _table(frame: pd.DataFrame, keys: Sequence[str], measured: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    """Return headings and rows: `keys` unchanged (if empty, all other columns), `measured` with intervals."""
    if frame.empty:
        return None
    ends = [f"{name}{end}" for name in measured for end in ("", "_low", "_high")]
    keys = keys or [name for name in frame.columns if name not in ends]
    headings = [*(key.replace("_", " ") for key in keys), *(heading for heading, _ in measured.values())]
    groups = []
    for _, row in frame.iterrows():
        named = [_cell(row, key, "{}") if pd.api.types.is_number(row[key]) else _name(str(row[key])) for key in keys]
        groups.append([[*named, *(_cell(row, name, form) for name, (_, form) in measured.items())]])
    return {"headings": headings, "groups": groups}


def _utility(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Return the table of all columns that have an interval."""
    names = [name for name in frame.columns if f"{name}_low" in frame.columns]
    return _table(frame, ("source", "seeds"), {name: (name, "{:.2f}") for name in names})


def _without_constants(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop `main` and the columns whose value is the same in every row."""
    always = [
        name
        for name in frame.columns
        if name not in ("source", "split") and name.partition("_")[0] not in ("exact", "rouge")
    ]
    return frame.drop(columns=[name for name in always if name == "main" or frame[name].nunique() < 2])


def _name(text: str) -> dict[str, Any]:
    return {"text": text, "interval": "", "sort": text, "number": False, "bar": None}


def _cell(row: Any, name: str, form: str) -> dict[str, Any]:
    """Return a table cell: its text, the value to sort by, and a bar (in percent) if the number is a share."""
    value = row[name]
    empty = pd.isna(value)
    share = name.endswith(("exact_match", "rouge_l")) and not empty
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return {
        "text": "—" if empty else value if isinstance(value, str) else form.format(value),
        "interval": f"[{form.format(low)}, {form.format(high)}]" if known else "",
        "sort": "" if empty else value,
        "number": True,
        "bar": f"{100 * value:.0f}" if share else None,
    }


def _documents(tables: Tables) -> tuple[list[dict[str, Any]], str]:
    """Return each run's documents for the page's script, and a sentence about those that are left out."""
    found = []
    shown = total = 0
    room = _DOCUMENT_BYTES // max(1, len(tables.labels))
    for label, run in tables.labels.items():
        documents = [compare(row) for row in run.extraction]
        # Every n-th document, so that the ratio of injected to never-seen ones stays the same.
        every = max(1, math.ceil(len(_json(documents).encode()) / room))
        found.append({"run": label, "documents": documents[::every]})
        shown, total = shown + len(documents[::every]), total + len(documents)
    left_out = total - shown
    limit = f"{_DOCUMENT_BYTES / 1e6:.0f} MB"
    note = (
        f"The page shows {shown:,} of {total:,} documents, every n-th of a run, to stay below {limit}. "
        if left_out
        else ""
    )
    return found, note


def compare(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of extraction.parquet for the page: `true` as spans of (dropped, text), `generated` as the texts
    before, at and after the first wrong token (only the first text if no token is wrong)."""
    wrong, pieces = document["longest_prefix"], document["pieces"]
    marked = "".join(pieces[wrong : wrong + 1])
    visible = marked if marked.strip() else marked.replace("\n", "⏎").replace(" ", "␣") or "∅"
    fates = groupby(zip(document["kept"], document["true_pieces"], strict=False), key=lambda pair: bool(pair[0]))
    return {
        "id": str(document["document"]),
        "split": document["split"],
        "exposures": document["exposures"],
        "exact": document["exact_match"],
        "rouge": round(document["rouge_l"], 4),
        "right": wrong,
        "tokens": len(document["true_pieces"]),
        "prefix": document["prefix"][-_PREFIX_CHARACTERS:],
        "true": [[int(not kept), "".join(piece for _, piece in pairs)] for kept, pairs in fates],
        "generated": [
            "".join(pieces[:wrong]),
            *([visible, "".join(pieces[wrong + 1 :])] if wrong < len(pieces) else []),
        ],
    }


def _json(value: Any) -> str:
    """Return JSON that cannot close the <script> element that contains it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _inline(svg: str) -> Markup:
    """Return an SVG to insert into the page, with the page's own colours; matplotlib has escaped its texts."""
    drawing = svg[svg.index("<svg") :]
    for colour, own in ((figures.INK, "var(--ink)"), (figures.PAGE, "var(--page)"), (figures.BLUE, "var(--blue)")):
        drawing = drawing.replace(colour, own)
    return Markup(drawing)
