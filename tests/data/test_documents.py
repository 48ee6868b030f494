import json

import datasets
import numpy as np
import pandas as pd
import pytest

from goldfish.data.documents import canaries, fingerprint, read_documents

ROWS = [{"id": str(i), "text": f"text {i}", "split": "never_seen" if i == 2 else "injected"} for i in range(3)]


def test_documents_are_the_same_from_jsonl_parquet_and_a_dataset_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    for name in ("a.jsonl", "a.parquet", "folder"):
        assert [entry._asdict() for entry in read_documents(tmp_path / name)] == ROWS


def test_without_a_split_documents_are_injected(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": f"text {i}"}) for i in range(3)))
    assert [(entry.id, entry.text, entry.split) for entry in read_documents(path)][1] == ("1", "text 1", "injected")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": 1, "text": "a"}', "{broken"], "line 2: not JSON"),
        (['{"id": 1}'], "line 1: must be"),
        (["[1, 2]"], "line 1: a JSON list"),
        (['{"id": 1, "text": "a"}', '{"id": 1, "text": "b"}'], "line 2: the id '1' occurs twice"),
        (['{"id": 1, "text": " "}'], "line 1: document '1' has no text"),
        (['{"id": 1, "text": "a", "split": "train"}'], "split 'train'; must be"),
        ([], "holds no documents"),
    ],
)
def test_a_documents_file_that_is_wrong_is_refused_with_its_line(tmp_path, lines, words):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        read_documents(path)


def test_a_table_that_is_wrong_is_refused_with_its_row_or_its_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"name": ["a"], "content": ["b"]}).to_parquet(path)
    with pytest.raises(ValueError, match="no column id and text; its columns are name, content"):
        read_documents(path)
    pd.DataFrame({"id": ["a", "b"], "text": ["b", None]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: document 'b' has no text"):
        read_documents(path)
    path.write_text("not a table")
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file"):
        read_documents(path)
    datasets.Dataset.from_dict({"id": ["a"], "texts": ["b"]}).save_to_disk(tmp_path / "folder")
    with pytest.raises(ValueError, match="no column text; its columns are id, texts"):
        read_documents(tmp_path / "folder")
    datasets.DatasetDict({"a": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="give the folder of one of them: a"):
        read_documents(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"not a folder that datasets\.save_to_disk wrote"):
        read_documents(tmp_path / "empty")


def test_the_fingerprint_changes_with_the_content_of_any_file(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = fingerprint(tmp_path), fingerprint(tmp_path / "a")
    (tmp_path / "b").write_text("3")
    assert fingerprint(tmp_path) != before[0] and fingerprint(tmp_path / "a") == before[1]


def test_canaries_are_uniform_over_the_ids_that_are_not_special():
    found = canaries(100, 500, vocab_size=12, special_ids=[0, 11], seed=3)
    assert list(found)[:2] == ["canary-000", "canary-001"] and all(len(ids) == 500 for ids in found.values())
    counts = np.bincount(np.concatenate(list(found.values())), minlength=12)
    assert counts[0] == counts[11] == 0
    assert ((counts[1:11] - 5000) ** 2 / 5000).sum() < 27.9  # chi-square of 9 degrees of freedom: 1 in 1000
    with pytest.raises(ValueError, match="vocab_size=2: all ids are special"):
        canaries(1, 1, vocab_size=2, special_ids=[0, 1], seed=0)


def test_a_canary_depends_on_the_seed_and_its_number_only():
    three, five = (canaries(count, 20, 300, [0], seed=0) for count in (3, 5))
    assert list(five.values())[:3] == list(three.values())
    assert len({tuple(ids) for ids in five.values()}) == 5
    assert canaries(3, 20, 300, [0], seed=1) != three
