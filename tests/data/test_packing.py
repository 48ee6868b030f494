import json
import multiprocessing

import numpy as np
import pytest

from goldfish.data.corpus import Document, Factbook, TextFiles
from goldfish.data.injection import Injection, ngram_hashes
from goldfish.data.packing import OVERLAP, prepare
from goldfish.data.tokenizer import Pretrained, TrainedBPE, encode

SMALL = Injection(documents=4, never_seen=4, document_tokens=32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(Factbook(), TrainedBPE(512), SMALL, 0.05, tmp_path_factory.mktemp("cache"))


def test_injected_and_never_seen_text_occurs_nowhere_else(prepared):
    streams = [np.array(prepared.background), np.array(prepared.validation)]
    documents = [np.array(document.ids) for document in prepared.documents]
    for index, ids in enumerate(documents):
        grams = ngram_hashes(ids, OVERLAP)
        for other in streams + documents[:index] + documents[index + 1 :]:
            assert not np.isin(grams, ngram_hashes(other, OVERLAP)).any()


def test_injected_and_never_seen_documents_come_from_the_same_source(prepared):
    assert [len(prepared.of_split(split)) for split in ("injected", "never_seen")] == [4, 4]
    source = {document.id: document.text for document in Factbook().documents()}
    assert all(source[document.id].startswith(document.text.strip()) for document in prepared.documents)


def test_the_background_holds_whole_documents_behind_separators(prepared):
    ids = np.array(prepared.background)
    assert ids[0] == prepared.separator and ids.dtype == np.uint16
    first = ids[1 : 1 + np.argmax(ids[1:] == prepared.separator)]
    texts = {document.text for document in Factbook().documents()}
    assert prepared.tokenizer.decode(first) in texts


def test_the_cache_is_used_again_and_a_changed_text_is_not_mistaken_for_the_old(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.txt").write_text(f"{index} " + " ".join(f"word{index * 100 + i}" for i in range(60)))
    injection = Injection(documents=1, never_seen=1, document_tokens=20)
    said: list[str] = []
    ask = lambda: prepare(TextFiles(str(folder)), TrainedBPE(300), injection, 0.1, tmp_path / "cache", said.append)  # noqa: E731
    first = ask()
    count = len(said)
    assert count > 0 and len(ask().background) == len(first.background) and len(said) == count
    (folder / "3.txt").write_text("another text " * 40)
    assert len(ask().background) != len(first.background) and len(said) > count


def _prepare(cache, queue):
    said: list[str] = []
    prepare(Factbook(), TrainedBPE(512), SMALL, 0.05, cache, said.append)
    queue.put(len(said))


def test_two_processes_that_ask_at_once_prepare_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_prepare, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert sorted(queue.get(timeout=10) > 0 for _ in processes) == [False, True]
    assert not list(tmp_path.glob("*.tmp*")) and len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="wanted 999 injected"):
        prepare(Factbook(), TrainedBPE(512), Injection(documents=999), 0.05, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


class Texts:
    def __init__(self, *documents: Document) -> None:
        self._documents = documents

    def documents(self):
        yield from self._documents

    def fingerprint(self) -> str:
        return str(hash(self._documents))


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.corpus: the corpus holds no text"):
        prepare(Texts(), TrainedBPE(300), SMALL, 0.05, tmp_path)
    with pytest.raises(ValueError, match=r"1 group\(s\) of documents.*split=paragraph"):
        prepare(Texts(Document("a", "a", "text")), TrainedBPE(300), SMALL, 0.05, tmp_path)


def test_documents_of_a_file_are_injected_and_text_that_overlaps_them_leaves_the_background(tmp_path):
    source = list(Factbook().documents())
    own = [document for document in source if len(document.text) > 800][:4]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"id": d.id, "text": d.text}) for d in own))
    injection = Injection(documents=2, never_seen=2, document_tokens=64, path=str(path))
    prepared = prepare(Factbook(), TrainedBPE(512), injection, 0.05, tmp_path / "cache")
    assert {document.id for document in prepared.documents} == {document.id for document in own}
    background = ngram_hashes(np.array(prepared.background), OVERLAP)
    for document in prepared.documents:
        assert not np.isin(ngram_hashes(np.array(document.ids), OVERLAP), background).any()


def test_a_document_of_a_file_that_is_too_short_is_refused_by_id(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "tiny", "text": "too short"}')
    injection = Injection(documents=1, never_seen=1, document_tokens=64, path=str(path))
    with pytest.raises(
        ValueError, match=r"document 'tiny' has \d+ tokens, fewer than data.injection.document_tokens=64"
    ):
        prepare(Factbook(), TrainedBPE(512), injection, 0.05, tmp_path / "cache")


def test_text_files_are_documents_and_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n \nthree\n")
    (tmp_path / "b.md").write_text("four")
    assert [d.text for d in TextFiles(str(tmp_path)).documents()] == ["one\n\ntwo\n \nthree"]
    assert [d.text for d in TextFiles(str(tmp_path / "a.txt"), split="paragraph").documents()] == [
        "one",
        "two",
        "three",
    ]
    with pytest.raises(ValueError, match=r"path='nowhere': no such file or folder"):
        TextFiles("nowhere")
    with pytest.raises(ValueError, match=r"holds no file that matches pattern='\*.json'"):
        TextFiles(str(tmp_path), pattern="*.json")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt: not UTF-8 text .* at byte 3"):
        list(TextFiles(str(tmp_path)).documents())


def test_any_hugging_face_tokenizer_serves_by_path(tmp_path, prepared):
    prepared.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = prepare(Factbook(), Pretrained(str(tmp_path / "tokenizer")), SMALL, 0.05, tmp_path / "cache")
    assert encode(again.tokenizer, ["The capital"]) == encode(prepared.tokenizer, ["The capital"])
    assert np.array_equal(again.background, prepared.background)
