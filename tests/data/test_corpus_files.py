"""Text files, JSON Lines, Parquet and Hugging Face datasets."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from goldfish.data.corpus import HuggingFace, JsonLines, Parquet, TextFiles

ROWS = [
    {"text": "one", "name": "a", "country": "x", "n": 1},
    {"text": "two", "name": "b", "country": "x", "n": 2},
    {"text": "three", "name": "c", "country": "y", "n": 3},
]


def read(corpus):
    documents = list(corpus.documents())
    assert documents == list(corpus.documents())
    return documents


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def table(path, rows=ROWS):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return str(path)


def saved(folder, rows=ROWS):
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return str(folder)


def saved_splits(folder, rows=ROWS):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder)
    return str(folder)


def parquet_folder(folder, rows=ROWS):
    table(folder / "data.parquet", rows)
    return str(folder)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))


# Text files


@pytest.mark.parametrize("text", ["one\n\ntwo\n \nthree\n", "\n\none\r\n\r\ntwo\n\n\n\t\nthree", "one\r\rtwo\r\rthree"])
def test_paragraphs_are_what_stands_between_blank_lines(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents = read(TextFiles(str(tmp_path), split="paragraph"))
    assert [(d.id, d.group, d.text) for d in documents] == [
        (f"a.txt#{number}", f"a.txt#{number}", word) for number, word in enumerate(["one", "two", "three"])
    ]


def test_compressed_text_gives_the_same_documents_as_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("one\n\ntwo")
    for split in ("file", "paragraph"):
        plain = TextFiles(str(tmp_path), split=split)
        packed = TextFiles(str(tmp_path), pattern="*.gz", split=split)
        assert [d.text for d in plain.documents()] == [d.text for d in packed.documents()]


def test_a_folder_read_by_paragraphs_never_holds_a_whole_file(tmp_path):
    import tracemalloc

    (tmp_path / "a.txt").write_text(("word " * 100 + "\n\n") * 20_000)  # 10 MB
    corpus = TextFiles(str(tmp_path), split="paragraph")
    tracemalloc.start()
    assert sum(1 for _ in corpus.documents()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("split", ["file", "paragraph"])
@pytest.mark.parametrize("before", [0, 3, (1 << 20) - 1, 1 << 20, 3_000_001])
def test_text_of_mixed_encodings_is_refused_with_the_byte_and_a_remedy(tmp_path, split, before):
    content = ("é\n" * before).encode()[:before] if before != 3 else b"caf"
    content = content if before in (0, 3) else b"\n" * (before % 3) + ("é\n" * (before // 3)).encode()
    (tmp_path / "a.txt").write_bytes(content + b"\xe9t\xe9\n")
    with pytest.raises(ValueError, match=rf"a\.txt: not UTF-8 text \(.* at byte {len(content)}\).*iconv -f LATIN1"):
        list(TextFiles(str(tmp_path), split=split).documents())


def test_text_that_ends_within_a_character_is_refused_at_that_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xc3")
    with pytest.raises(ValueError, match="unexpected end of data at byte 3"):
        list(TextFiles(str(tmp_path)).documents())


def test_a_gzip_file_that_was_cut_off_or_is_none_is_refused_by_name(tmp_path):
    whole = gzip.compress(b"some text " * 100)
    for content in (whole[:-12], b"plain text"):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gz: not a whole gzip file"):
            list(TextFiles(str(tmp_path / "a.gz")).documents())


def test_a_file_that_vanishes_is_told_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    corpus = TextFiles(str(tmp_path))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.txt: cannot be read \(No such file"):
        list(corpus.documents())


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}')
    assert [d.text for d in [*read(TextFiles(str(tmp_path))), *read(JsonLines(str(tmp_path)))]] == ["one", "one"]


# Rows of all three readers


READERS = {
    "jsonl": lambda root, rows: (JsonLines, lines(root / "a.jsonl", *rows), {}),
    "parquet": lambda root, rows: (Parquet, table(root / "a.parquet", rows), {}),
    "folder": lambda root, rows: (HuggingFace, parquet_folder(root / "folder", rows), {}),
    "streamed folder": lambda root, rows: (HuggingFace, parquet_folder(root / "folder", rows), {"streaming": True}),
    "saved": lambda root, rows: (HuggingFace, saved(root / "saved", rows), {}),
    "saved splits": lambda root, rows: (HuggingFace, saved_splits(root / "splits", rows), {"streaming": True}),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    def make(rows, **columns):
        cls, path, settings = READERS[request.param](tmp_path, rows)
        return cls(path, **settings, **columns)

    return make


def test_columns_give_text_name_and_group(reader):
    documents = read(reader(ROWS, id="name", group="country"))
    assert [tuple(d) for d in documents] == [
        ("a", "x", "one", None),
        ("b", "x", "two", None),
        ("c", "y", "three", None),
    ]
    assert [d.id for d in read(reader(ROWS, id="n"))] == ["1", "2", "3"]


def test_without_names_rows_are_numbered_and_each_is_its_own_group(reader):
    documents = read(reader(ROWS))
    assert len({d.id for d in documents}) == 3 and all(d.group == d.id for d in documents)
    assert [d.id[-1] for d in documents] in (["0", "1", "2"], ["1", "2", "3"])


def test_rows_without_text_are_skipped_and_counted(reader):
    corpus = reader([{"text": "one"}, {"text": None}, {"text": ""}, {"text": " \n"}, {"text": "two"}])
    assert [d.text for d in read(corpus)] == ["one", "two"] and corpus.skipped == 3


@pytest.mark.parametrize("setting", ["text", "id", "group"])
def test_a_column_that_does_not_exist_is_told_with_those_that_do(reader, setting):
    with pytest.raises(ValueError, match=rf"{setting}='body': .* no such column; .* text, name, country, n$"):
        list(reader(ROWS, **{setting: "body"}).documents())


def test_a_text_that_is_a_number_is_refused_with_its_row(reader):
    with pytest.raises(ValueError, match=r"(row 0|line 1): column 'n' holds 1, not text"):
        list(reader(ROWS, text="n").documents())
    with pytest.raises(ValueError, match=r"(row 1|line 2): column 'name' holds None; a name must be a string"):
        list(reader([ROWS[0], {**ROWS[1], "name": None}], id="name").documents())


def test_the_fingerprint_changes_with_content_and_columns_and_only_then(reader):
    first = reader(ROWS).fingerprint()
    assert reader(ROWS).fingerprint() == first != reader(ROWS, group="country").fingerprint()
    assert reader([*ROWS[:2], {**ROWS[2], "text": "threE"}]).fingerprint() != first


# JSON Lines


def test_files_of_a_folder_or_a_glob_are_read_in_the_order_of_their_names(tmp_path):
    lines(tmp_path / "b.jsonl", {"text": "two"})
    (tmp_path / "a").mkdir()
    with gzip.open(tmp_path / "a" / "c.jsonl.gz", "wt") as file:
        file.write('\n{"text": "one"}\n')
    expected = [("a/c.jsonl.gz#2", "one"), ("b.jsonl#1", "two")]
    assert [(d.id, d.text) for d in read(JsonLines(str(tmp_path)))] == expected
    assert [(d.id, d.text) for d in read(JsonLines(str(tmp_path / "**" / "*.jsonl*")))] == expected


def test_texts_stay_texts_when_they_look_like_dates_and_keys_may_change_from_line_to_line(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"text": "2012-01-01"}, {"text": "b", "meta": 1}, {"text": "c", "meta": {"x": 2}}
    )
    assert [d.text for d in read(JsonLines(path))] == ["2012-01-01", "b", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', r"line 2: not JSON \(Expecting ',' delimiter at character 13: .*\)"),
        (b'[{"text": "a"}]', r"line 1: a JSON list, not an object: .*jq -c"),
        (b"[" * 100_000, "line 1: JSON nested too deeply"),
        (b'{"text": "a"}\n{"text": "caf\xe9"}', r"not UTF-8 text \(.* at byte 27\)"),
        (b'{"text": "a"}\n{"body": "b"}', r"text='text': .*line 2 has no such column; the columns there are: body"),
        (b'{"text": "\\ud800"}', "line 1: column 'text' holds a lone surrogate"),
        (b'{"text": ["a"]}', r"line 1: column 'text' holds \['a'\], not text"),
    ],
)
def test_a_line_that_is_wrong_is_told_with_its_file_and_number(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jsonl(:|, line)|text=") as caught:
        list(JsonLines(str(tmp_path)).documents())
    assert caught.match(words)


# Parquet


def test_parquet_files_give_file_and_row(tmp_path):
    table(tmp_path / "p" / "a.parquet")
    table(tmp_path / "p" / "b.parquet", ROWS[:1])
    ids = [d.id for d in read(Parquet(str(tmp_path / "p")))]
    assert ids == ["a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0"]
    with pytest.raises(ValueError, match=r"a\.parquet, row 0: column 'n' holds 1, not text"):
        list(Parquet(str(tmp_path / "p"), text="n").documents())
    with pytest.raises(ValueError, match=r"holds no file that matches pattern='\*\*/\*\.parquet'"):
        Parquet(str((tmp_path / "empty").mkdir() or tmp_path / "empty"))


def test_a_parquet_file_that_was_cut_off_is_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    table(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet: not a whole Parquet file"):
        Parquet(str(path))


# Hugging Face


def test_a_dataset_that_is_not_there_is_told_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"path='nobody/nothing': no dataset could be read there \(.*hub") as caught:
        list(HuggingFace("nobody/nothing").documents())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"path='/no/such/folder': no such folder"):
        HuggingFace("/no/such/folder")
    with pytest.raises(ValueError, match=r"a file; read it as data/corpus=jsonl or parquet"):
        HuggingFace(lines(tmp_path / "a.jsonl", *ROWS))


@pytest.mark.parametrize(("make", "words"), [(saved_splits, "train"), (parquet_folder, r"\['train'\]")])
def test_a_split_that_does_not_exist_is_told_with_those_that_do(tmp_path, make, words):
    with pytest.raises(ValueError, match=rf"test.*{words}"):
        list(HuggingFace(make(tmp_path / "data"), split="test").documents())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_file_of_a_folder_is_told_in_one_sentence(tmp_path, streaming):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "folder" / "b.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="no dataset could be read there") as caught:
        list(HuggingFace(str(tmp_path / "folder"), streaming=streaming).documents())
    assert "\n" not in str(caught.value)


def test_a_revision_of_the_hub_is_looked_up_once_and_the_commit_is_what_is_read(monkeypatch):
    import huggingface_hub

    asked, loaded = [], []

    class Info:
        sha = "c" * 40

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: asked.append(k["revision"]) or Info)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: loaded.append(k["revision"]) or datasets.Dataset.from_list(ROWS)
    )
    corpus = HuggingFace("owner/name", revision="main")
    fingerprint = corpus.fingerprint()
    assert len(read(corpus)) == 3 and asked == ["main"] and set(loaded) == {"c" * 40}
    assert HuggingFace("owner/name", revision="c" * 40).fingerprint() == fingerprint and asked == ["main"]
    Info.sha = "d" * 40
    assert HuggingFace("owner/name", revision="main").fingerprint() != fingerprint
