"""Files of others and damaged ones: named in words, or survived. experiments/robustness/files.py tries 500 cases."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "robustness"))
from damaged_files import HOSTILE, MARKUP, Executed
from file_cases import RAW, Workspace, cases, verdict

from goldfish.tools.files import FileError, json_lines, parse_json, parse_yaml, read_csv, reading, safe
from goldfish.tools.terminal import Console


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Reading


def test_a_line_of_json_ends_at_a_line_feed_only(tmp_path):
    text = "a\u2028b\u2029c\x85d"
    lines = [json.dumps({"text": text}, ensure_ascii=False), '{"text": "b"}']
    for end, start in (("\n", b""), ("\r\n", b"\xef\xbb\xbf")):
        path = written(tmp_path / "a.jsonl", start + (end.join(lines) + end + end).encode())
        assert [row["text"] for _, row in json_lines(path)] == [text, "b"]
    assert [number for number, _ in json_lines(path)] == [1, 2]


def test_every_reader_of_documents_takes_texts_with_other_line_separators(tmp_path):
    from goldfish.data.corpus import JsonLines
    from goldfish.data.documents import read_documents
    from goldfish.runs.record import RunDirectory
    from goldfish.unlearning.questions import TOFU

    text = "one\u2028two\u2029three\x85four"
    row = {"id": "a", "split": "injected", "ids": [1], "text": text, "question": text, "answer": text}
    path = written(tmp_path / "documents.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert [entry.text for entry in read_documents(path)] == [text]
    assert [document.text for document in JsonLines(str(path)).documents()] == [text]
    (tmp_path / "forget01.json").write_bytes(path.read_bytes())
    assert TOFU("forget01", str(tmp_path))._read("forget01")[0].question == text
    del row["question"], row["answer"]
    written(path, json.dumps(row, ensure_ascii=False) + "\n")
    assert RunDirectory(tmp_path).documents()[0]["text"] == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": \x1b[2J}\n', r"line 2: not JSON \(Expecting value at character 7: .*\\x1b\[2J"),
        (b'{"a": 1}\n[1]', "line 2: a JSON list, not an object"),
        (b"[" * 100_000, "line 1: JSON nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1: not JSON that can be read"),
        ('{"a": "ä"}'.encode("utf-16"), r"not UTF-8 text .* \(for UTF-16: -f UTF-16\)"),
    ],
)
def test_a_damaged_line_is_shown_escaped_with_file_and_number(tmp_path, content, words):
    with pytest.raises(FileError, match=words) as told:
        list(json_lines(written(tmp_path / "a.jsonl", content)))
    assert str(tmp_path / "a.jsonl") in str(told.value) and not RAW.search(str(told.value))
    assert len(str(told.value)) < 600


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("goldfish.tools.files.MOST_LINE", 1000)
    with pytest.raises(FileError, match="line 2: longer than"):
        list(json_lines(written(tmp_path / "a.jsonl", b"{}\n" + b" " * 5000)))


def test_yaml_of_a_thousand_million_aliases_is_refused_at_once():
    text = "a: &a [1, 1]\n" + "".join(
        f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(FileError, match="config: not YAML of plain values"):
        parse_yaml(text, "config")
    for text in ("a: 2020-01-01", "1: a", "[1]", "a: [", "!!python/object/apply:os.getcwd []"):
        with pytest.raises(FileError):
            parse_yaml(text, "config")
    assert parse_yaml("a: {b: [1, null, 0.5, true]}", "config") == {"a": {"b": [1, None, 0.5, True]}}


def test_csv_with_a_cut_row_a_missing_column_or_nul_is_named_with_its_line(tmp_path):
    path = written(tmp_path / "a.csv", "document,step\na,1\nb")
    with pytest.raises(FileError, match=r"a\.csv, line 3: not as many fields"):
        read_csv(path, ["document"])
    with pytest.raises(FileError, match="no column row"):
        read_csv(path, ["document", "row"])
    assert read_csv(written(path, 'document,step\n"a\u2028b",1\n'), ["document"]) == [
        {"document": "a\u2028b", "step": "1"}
    ]


def test_a_lack_of_memory_or_disk_is_not_taken_for_a_damaged_file():
    for error in (
        MemoryError(),
        OSError(28, "No space left"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(type(error)) as told, reading("a", "a table"):
            raise error
        assert told.value is error
    with pytest.raises(FileError, match="a: not a table, or a damaged one"), reading("a", "a table"):
        raise KeyError("b")


# What is printed


def test_nothing_that_a_terminal_obeys_is_printed_and_nothing_is_lost(capsys):
    console = Console()
    console.print(HOSTILE, style="red")
    console.print(f"[bold]{HOSTILE}[/bold] :smile:")
    printed = capsys.readouterr().out
    assert not RAW.search(printed) and "\\x1b]52;c;" in printed and MARKUP.split()[0] in printed.replace("\n", "")
    assert "[bold]" in printed and ":smile:" in printed
    assert safe("a\tb\nc ä 中 👍") == "a\tb\nc ä 中 👍"
    with pytest.raises(FileError) as told:
        parse_json("\u202e" + HOSTILE, "a")
    assert not RAW.search(str(told.value))


# Damaged files: forty of the cases of experiments/robustness/files.py


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("files") / "workspace")
    made.make()
    return made


@pytest.fixture(scope="session")
def expected() -> dict:
    return {}


@pytest.mark.parametrize(
    "case", cases(48, seed=0), ids=lambda case: f"{case.target.action}-{case.kind}-{case.target.path}"
)
def test_a_damaged_file_is_named_or_survived(case, workspace, expected, monkeypatch):
    if case.target.action == "report":
        monkeypatch.setattr("goldfish.report.drawings.draw", lambda *_: {})  # seconds
    outcome, said = verdict(case, workspace, expected)
    assert outcome in ("named", "survived"), f"{outcome}\n{said}"


def test_the_pickle_that_the_cases_use_would_create_a_file(tmp_path):
    pickle.loads(pickle.dumps(Executed(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


# One small test for each class of fault that the cases found


def test_a_bit_that_flipped_below_the_file_system_is_noticed_in_a_cache(tmp_path):
    from goldfish.data.cache import Damaged, seal, unseal

    path = written(tmp_path / "background.bin", b"0123")
    seal(tmp_path, {"a": 1})
    before = path.stat()
    written(path, b"0122")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    about = json.loads((tmp_path / "meta.json").read_text())
    about.pop("sha256")
    about["files"]["background.bin"][:3] = [4, before.st_mtime_ns, path.stat().st_ctime_ns]  # no time tells
    from goldfish.data.cache import _sha256_of

    written(tmp_path / "meta.json", json.dumps({**about, "sha256": _sha256_of(about)}))
    with pytest.raises(Damaged, match=r"background\.bin was cut off or edited"):
        unseal(tmp_path)


def test_pages_of_parquet_have_checksums_that_are_compared(tmp_path):
    from goldfish.tools.files import read_rows
    from goldfish.tools.writing import write_rows

    write_rows(tmp_path / "a.parquet", [{"text": "goldfish" * 20 + str(n)} for n in range(50)])
    content = (tmp_path / "a.parquet").read_bytes()
    place = content.index(b"goldfish")
    written(tmp_path / "a.parquet", content[:place] + b"h" + content[place + 1 :])
    with pytest.raises(FileError, match=r"a\.parquet: not a whole Parquet file"):
        read_rows(tmp_path / "a.parquet")


def test_a_progress_file_of_anything_is_no_progress(tmp_path):
    from goldfish.runs.record import RunDirectory

    for content in ("", "[1]", '{"state": 1}', "{" * 9999, b"\xff", '{"step": 1}'):
        written(tmp_path / "progress.json", content)
        assert RunDirectory(tmp_path).progress() == {}
    written(tmp_path / "progress.json", json.dumps({"state": "\x1b]0;t\x07", "step": [1], "loss": 1.5}))
    assert RunDirectory(tmp_path).progress() == {"state": "\\x1b]0;t\\x07", "loss": 1.5}


def test_a_checkpoint_that_would_run_code_is_refused_before_it_is_read(tmp_path):
    import torch
    import torch.distributed.checkpoint as dcp

    from goldfish.training.checkpoints import checkpoint_error, whole_folder

    torch.save({"state_dict": Executed(tmp_path / "executed")}, tmp_path / "last.ckpt")
    assert "not a whole checkpoint" in checkpoint_error(tmp_path / "last.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "good.ckpt")
    assert checkpoint_error(tmp_path / "good.ckpt") is None
    with whole_folder(tmp_path / "sharded.ckpt", True, lambda: None) as folder:
        dcp.save(
            {"a": torch.zeros(3), "b": {"lr": 0.1, "c": [torch.ones(2, dtype=torch.bfloat16)]}},
            checkpoint_id=folder,
            no_dist=True,
        )
    sharded = tmp_path / "sharded.ckpt"
    assert checkpoint_error(sharded) is None
    (sharded / "sizes.json").write_text("{}")  # whoever can write here can also write the sizes
    (sharded / ".metadata").write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    assert checkpoint_error(sharded) == ".metadata does not describe tensors (UnpicklingError: it uses os.makedirs)"
    assert not (tmp_path / "executed").exists()


class Attribute:
    """Is pickled as getattr(of, name), as Python 3.11.2 pickles a member of an enum."""

    def __init__(self, of, name):
        self.of, self.name = of, name

    def __reduce__(self):
        return getattr, (self.of, self.name)


def test_the_metadata_of_a_sharded_checkpoint_may_hold_a_member_of_an_enum_and_no_other_attribute(tmp_path):
    import io

    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

    from goldfish.training.checkpoints import _OnlyMetadata

    member = _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    assert _OnlyMetadata(io.BytesIO(pickle.dumps(Attribute(_MEM_FORMAT_ENCODING, member.name)))).load() is member
    with pytest.raises(pickle.UnpicklingError, match="it uses an attribute of <class"):
        _OnlyMetadata(io.BytesIO(pickle.dumps(Attribute(Metadata, "__init__")))).load()


def test_a_value_in_a_sharded_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path):
    import torch
    import torch.distributed.checkpoint as dcp

    from goldfish.training.checkpoints import consolidate, whole_folder

    with whole_folder(tmp_path / "a.ckpt", True, lambda: None) as folder:
        dcp.save(
            {"state_dict": {"a": torch.zeros(3)}, "b": Executed(tmp_path / "executed")},
            checkpoint_id=folder,
            no_dist=True,
        )
        torch.save({}, folder / "meta.pt")
    with pytest.raises(FileError, match=r"a\.ckpt: not a checkpoint of tensors and plain values"):
        consolidate(tmp_path / "a.ckpt", tmp_path / "whole.ckpt")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "whole.ckpt").exists()


def test_a_flipped_bit_in_a_sharded_checkpoint_is_noticed(tmp_path):
    from goldfish.training.checkpoints import checkpoint_error, whole_folder

    with whole_folder(tmp_path / "a.ckpt", True, lambda: None) as folder:
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"0123")
    assert checkpoint_error(tmp_path / "a.ckpt") is None
    (tmp_path / "a.ckpt" / "__0_0.distcp").write_bytes(b"0122")
    assert checkpoint_error(tmp_path / "a.ckpt") == "the checksum of __0_0.distcp is wrong"


def test_a_model_with_a_missing_weight_is_refused_and_not_filled_with_random_numbers(tmp_path, workspace):
    from safetensors.torch import load_file, save_file

    from goldfish.models.pretrained import load_model

    folder = shutil.copytree(workspace.root / "hf_model", tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(FileError, match="they do not belong together"):
        load_model(folder)


def test_loading_a_model_leaves_the_random_state_as_it_was(workspace):
    import torch

    from goldfish.models.pretrained import load_model

    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_model(workspace.root / "hf_model")
    assert torch.equal(before, torch.get_rng_state())


def test_one_damaged_run_among_many_is_named_and_left_out(tmp_path, workspace, capsys, monkeypatch):
    from goldfish.cli.report import main

    monkeypatch.setattr("goldfish.report.drawings.draw", lambda *_: {})
    one = workspace.root / "runs" / "study" / "run_one"
    folders = [shutil.copytree(one, tmp_path / "runs" / f"{n:02d}") for n in range(20)]
    for seed, folder in enumerate(folders):
        shutil.rmtree(folder / "evaluations")
        result = json.loads((folder / "result.json").read_text())
        written(folder / "result.json", json.dumps({**result, "seed": seed}))
    written(folders[7] / "result.json", "{")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    assert f"left out, damaged: {folders[7] / 'result.json'}: not JSON" in capsys.readouterr().err
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 1 + 19


def test_names_of_a_run_are_made_safe_for_tables_figures_and_the_page(tmp_path, workspace):
    from goldfish.report.finished import collect
    from goldfish.report.tables import summarize, tabulate
    from goldfish.report.write import latex

    folder = shutil.copytree(workspace.root / "runs" / "study" / "run_one", tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    written(folder / "result.json", json.dumps({**result, "run": HOSTILE, "study": HOSTILE, "arm": HOSTILE}))
    runs = collect([folder])
    assert runs[0].result["run"] == safe(HOSTILE)
    shown = summarize(runs).to_csv() + latex(tabulate(runs, []))
    assert not RAW.search(shown) and "\\x1b]52" in summarize(runs).to_csv()


def test_a_glob_enters_no_circle_of_linked_folders(tmp_path):
    from goldfish.data.corpus.text import files_of

    (tmp_path / "a").mkdir()
    written(tmp_path / "a" / "b.txt", "text")
    for name in ("x", "y"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert [name for name, _ in files_of(str(tmp_path / "**" / "*.txt"), "**/*.txt")] == ["b.txt"]


def test_a_line_of_a_log_that_was_cut_costs_that_line_only(tmp_path):
    from goldfish.training.loggers import merged_metrics

    (tmp_path / "csv" / "attempt_000").mkdir(parents=True)
    (tmp_path / "csv" / "attempt_001").mkdir()
    written(tmp_path / "csv" / "attempt_000" / "metrics.csv", b"step,loss\n0,1.5\n1,\xff\n2,1.25\n3")
    written(tmp_path / "csv" / "attempt_001" / "metrics.csv", b"")
    frame = merged_metrics(tmp_path)
    assert frame["step"].tolist() == [0, 1, 2, 3] and frame["loss"].dropna().tolist() == [1.5, 1.25]
