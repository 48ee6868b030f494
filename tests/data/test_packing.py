import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from goldfish.data import candidates as candidates_module
from goldfish.data import packing, tokenizer
from goldfish.data import split as split_module
from goldfish.data.corpus import Document, Factbook, TextFiles
from goldfish.data.injection import Injection
from goldfish.data.overlap import OVERLAP, ngram_hashes
from goldfish.data.packing import prepare
from goldfish.data.tokenizer import Pretrained, TrainedBPE, encode

SMALL = Injection(documents=4, never_seen=4, document_tokens=32)
BPE = TrainedBPE(300)


class Texts:
    def __init__(self, documents):
        self._documents = list(documents)

    def documents(self):
        yield from self._documents

    def fingerprint(self) -> str:
        return str(hash(tuple(str(document) for document in self._documents)))


def sentences(documents, groups, seed=0, pool=400, sentences=3):
    """Documents of random sentences out of a pool, so that some of them overlap."""
    draw = np.random.default_rng(seed)
    words = [" ".join(f"w{draw.integers(900)}" for _ in range(12)) + "." for _ in range(pool)]
    for index in range(documents):
        text = " ".join(words[place] for place in draw.integers(pool, size=sentences))
        yield Document(f"d{index}", f"g{index % groups}", text)


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
    ids, starts = np.array(prepared.background), prepared.background_starts
    assert ids.dtype == np.uint16 and starts.dtype == np.int64
    assert np.array_equal(np.flatnonzero(ids == prepared.separator), starts)
    texts = {document.text for document in Factbook().documents()}
    assert all(prepared.tokenizer.decode(ids[starts[i] + 1 : starts[i + 1]]) in texts for i in range(0, 1000, 50))


def obvious(corpus, source, injection, validation_share):
    """Streams and chosen documents as the first version made them: everything in lists, n-grams in sets."""
    documents = list(corpus.documents())
    groups = sorted({document.group for document in documents})
    order = [groups[i] for i in np.random.default_rng(injection.seed).permutation(len(groups))]
    held = round(len(groups) * injection.held_out) if injection.path is None else 0
    end = held + round(len(groups) * validation_share)
    background, validation, candidates = (
        [document for document in documents if document.group in part]
        for part in (order[end:], order[held:end], order[:held])
    )
    if injection.path:
        lines = map(json.loads, Path(injection.path).read_text().splitlines())
        candidates = [Document(line["id"], line["id"], line["text"]) for line in lines]
    tok = source.build(document.text for document in background)
    ids = lambda document: encode(tok, [document.text])[0]  # noqa: E731
    grams = lambda row: {tuple(row[i : i + OVERLAP]) for i in range(len(row) - OVERLAP + 1)}  # noqa: E731
    length = injection.document_tokens
    candidates = [(d.id, ids(d)[:length]) for d in candidates if len(ids(d)) >= length]
    theirs = set().union(*(grams(row) for _, row in candidates))
    kept = [
        [row for row in map(ids, part) if not injection.path or not grams(row) & theirs]
        for part in (background, validation)
    ]
    kept[1] = [row for row in kept[1] if row not in kept[0]]
    shown = set().union(*(grams(ids(document)) for document in background + validation))
    chosen: list = []
    for place in np.random.default_rng([injection.seed, 1]).permutation(len(candidates)):
        name, row = candidates[place]
        blocked = (grams(row) & shown and not injection.path) or any(grams(row) & grams(other) for _, other in chosen)
        if not blocked and len(chosen) < injection.documents + injection.never_seen:
            chosen.append((name, row))
    separator = tok.bos_token_id
    return [[i for row in part for i in (separator, *row)] for part in kept], chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("own", [False, True])
def test_the_result_is_that_of_the_obvious_code(tmp_path, monkeypatch, own, seed):
    monkeypatch.setattr(tokenizer, "BATCH_DOCUMENTS", 7)
    documents = list(sentences(300, 40, seed))
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"id": d.id, "text": d.text}) for d in documents[:30:2]))
    injection = Injection(
        documents=2, never_seen=2, document_tokens=30, held_out=0.3, seed=seed, path=str(path) if own else None
    )
    result = prepare(Texts(documents), BPE, injection, 0.1, tmp_path)
    (background, validation), chosen = obvious(Texts(documents), BPE, injection, 0.1)
    assert result.background.tolist() == background and result.validation.tolist() == validation
    assert [(document.id, document.ids) for document in result.documents] == chosen


def test_the_cache_is_used_again_and_a_changed_text_is_not_mistaken_for_the_old(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index}.txt").write_text(f"{index} " + " ".join(f"word{index * 100 + i}" for i in range(60)))
    injection = Injection(documents=1, never_seen=1, document_tokens=20)
    said: list[str] = []
    on_progress = lambda message, **numbers: said.append(message)  # noqa: E731
    ask = lambda: prepare(TextFiles(str(folder)), BPE, injection, 0.1, tmp_path / "cache", on_progress)  # noqa: E731
    first = ask()
    count = len(said)
    assert count > 0 and len(ask().background) == len(first.background) and len(said) == count
    (folder / "3.txt").write_text("another text " * 40)
    assert len(ask().background) != len(first.background) and len(said) > count


def test_settings_that_change_the_files_change_the_cache(tmp_path):
    corpus = Texts(sentences(200, 40))
    for injection in ({}, {"canaries": True}, {"overlap": "allow"}, {"seed": 1}, {"held_out": 0.3}):
        prepare(corpus, BPE, Injection(documents=1, never_seen=1, document_tokens=20, **injection), 0.1, tmp_path)
    prepare(corpus, TrainedBPE(300, sample_characters=999), Injection(1, 1, document_tokens=20), 0.1, tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 6


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="wanted 999 injected"):
        prepare(Factbook(), TrainedBPE(512), Injection(documents=999), 0.05, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.corpus: the corpus holds no text"):
        prepare(Texts([]), BPE, SMALL, 0.05, tmp_path)
    with pytest.raises(ValueError, match=r"1 group\(s\) of documents.*split=paragraph"):
        prepare(Texts([Document("a", "a", "text")]), BPE, SMALL, 0.05, tmp_path)


def test_documents_of_a_file_are_injected_and_text_that_overlaps_them_leaves_the_background(tmp_path):
    own = [document for document in Factbook().documents() if len(document.text) > 800][:4]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"id": d.id, "text": d.text}) for d in own))
    injection = Injection(documents=2, never_seen=2, document_tokens=64, path=str(path))
    prepared = prepare(Factbook(), TrainedBPE(512), injection, 0.05, tmp_path / "cache")
    assert {document.id for document in prepared.documents} == {document.id for document in own}
    background = ngram_hashes(np.array(prepared.background), OVERLAP)
    for document in prepared.documents:
        assert not np.isin(ngram_hashes(np.array(document.ids), OVERLAP), background).any()
    counts = prepared.statistics["background"]
    assert counts["overlapping_documents"] == counts["removed_documents"] >= 3


def test_a_document_of_a_file_that_is_too_short_is_refused_by_id(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "tiny", "text": "too short"}')
    injection = Injection(documents=1, never_seen=1, document_tokens=64, path=str(path))
    with pytest.raises(
        ValueError, match=r"document 'tiny' has \d+ tokens, fewer than data.injection.document_tokens=64"
    ):
        prepare(Texts(sentences(50, 40)), BPE, injection, 0.05, tmp_path / "cache")


def test_any_hugging_face_tokenizer_serves_by_path(tmp_path, prepared):
    prepared.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = prepare(Factbook(), Pretrained(str(tmp_path / "tokenizer")), SMALL, 0.05, tmp_path / "cache")
    assert encode(again.tokenizer, ["The capital"]) == encode(prepared.tokenizer, ["The capital"])
    assert np.array_equal(again.background, prepared.background)


def test_text_that_is_already_tokenized_is_taken_as_it_is(tmp_path, prepared):
    prepared.tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = Pretrained(str(tmp_path / "tokenizer"))
    texts = list(sentences(200, 40, pool=4000))
    ids = [Document(d.id, d.group, "", np.array(encode(prepared.tokenizer, [d.text])[0])) for d in texts]
    a, b = (prepare(Texts(documents), source, SMALL, 0.1, tmp_path / "cache") for documents in (texts, ids))
    assert np.array_equal(a.background, b.background) and a.documents == b.documents
    with pytest.raises(ValueError, match=r"document 'd0' holds token ids, not text.*type data/tokenizer=pretrained"):
        prepare(Texts(ids), BPE, SMALL, 0.1, tmp_path / "cache")
    ids[7].ids[3] = 512
    with pytest.raises(ValueError, match="document 'd7' holds the id 512, outside the tokenizer's vocabulary of 512"):
        prepare(Texts(ids), source, Injection(1, 1, document_tokens=16, seed=2), 0.1, tmp_path / "cache")


def test_the_tokenizer_is_trained_on_the_first_characters_of_the_background():
    texts = ["abab " * 20, "cdcd " * 20]
    few, all_of_it = (TrainedBPE(260, count).build(iter(texts)).get_vocab() for count in (100, 200))
    assert "ab" in few and "cd" not in few and "cd" in all_of_it
    with pytest.raises(ValueError, match="sample_characters=0: must be at least 1"):
        TrainedBPE(260, 0)


def test_canaries_are_random_tokens_and_nothing_is_held_out(tmp_path):
    corpus = Texts(sentences(200, 40))
    injection = Injection(documents=3, never_seen=3, document_tokens=50, canaries=True)
    prepared = prepare(corpus, BPE, injection, 0.1, tmp_path)
    assert sorted(document.id for document in prepared.documents) == [f"canary-{i:03}" for i in range(6)]
    assert [document.split for document in prepared.documents] == ["injected"] * 3 + ["never_seen"] * 3
    assert all(prepared.tokenizer.decode(document.ids) == document.text for document in prepared.documents)
    counts = prepared.statistics
    kept = counts["background"]["documents"] + counts["validation"]["documents"] + counts["validation"]["duplicates"]
    assert kept == 200


def overlapping(tmp_path, policy, seed=9):
    """A file of two documents, of which d0 stands in the background too, prepared under a policy."""
    texts = list(sentences(120, 40, pool=4000))
    path = tmp_path / "own.jsonl"
    other = next(sentences(1, 1, seed))
    path.write_text("\n".join(json.dumps({"id": d.id, "text": d.text}) for d in (texts[0], other._replace(id="new"))))
    injection = Injection(1, 1, document_tokens=40, path=str(path), overlap=policy)
    return prepare(Texts(texts), BPE, injection, 0.1, tmp_path / policy)


def test_a_changed_documents_file_is_not_mistaken_for_the_old(tmp_path):
    first, second = (overlapping(tmp_path, "remove", seed) for seed in (8, 9))
    assert {document.text for document in first.documents} != {document.text for document in second.documents}


def test_overlap_is_removed_or_refused_or_reported(tmp_path):
    removed, allowed = overlapping(tmp_path, "remove"), overlapping(tmp_path, "allow")
    for prepared, gone in ((removed, 1), (allowed, 0)):
        parts = [prepared.statistics[part] for part in ("background", "validation")]
        assert sum(part["overlapping_documents"] for part in parts) == 1
        assert sum(part["removed_documents"] for part in parts) == gone
        assert sum(part["documents"] for part in parts) == 120 - gone
        assert prepared.statistics["overlap"] == {"d0": 1.0, "new": 0.0}
    with pytest.raises(
        ValueError, match=r"1 of 2 documents share 13-grams .*'d0' \(100%\); type .*=remove .*=allow to keep"
    ):
        overlapping(tmp_path, "error")


def test_a_document_is_reported_with_the_share_of_it_that_other_text_holds(tmp_path):
    half, no = (" ".join(f"{letter}{index}" for index in range(40)) for letter in "wq")
    begin = half[: half.index(" w20")]
    corpus = Texts([*(Document(f"{i}", f"{i}", f"text {i}") for i in range(20)), Document("x", "x", begin)])
    BPE.build(iter(["a b"])).save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"id": text[0], "text": text}) for text in (half, no)))
    injection = Injection(1, 1, document_tokens=120, path=str(path), overlap="allow")
    prepared = prepare(corpus, Pretrained(str(tmp_path / "tokenizer")), injection, 0.1, tmp_path / "cache")
    own, shown = encode(prepared.tokenizer, [half, begin])
    grams = lambda ids: {tuple(ids[i : i + 13]) for i in range(len(ids) - 12)}  # noqa: E731
    share = len(grams(own[:120]) & grams(shown)) / len(grams(own[:120]))
    assert 0.3 < share < 0.6
    assert prepared.statistics["overlap"] == {"w": pytest.approx(share, abs=1e-4), "q": 0.0}


def test_a_validation_document_that_the_background_repeats_is_left_out(tmp_path):
    texts = [Document(f"d{i}", f"g{i}", f"text number {i} " * 9) for i in range(40)]
    injection = Injection(1, 1, document_tokens=9, canaries=True)
    first = prepare(Texts(texts), BPE, injection, 0.25, tmp_path)
    rows = np.split(np.array(first.validation), np.flatnonzero(np.array(first.validation) == first.separator)[1:])
    held = [first.tokenizer.decode(row[1:]) for row in rows]
    group = next(d.group for d in texts if d.text not in held)
    texts += [Document("copy", group, held[3]), Document("copies", group, held[5])]
    second = prepare(Texts(texts), BPE, injection, 0.25, tmp_path)
    counts = second.statistics["validation"]
    assert counts["duplicates"] == 2 and counts["documents"] == 8 and counts["tokens"] == len(second.validation)
    left = [text for index, text in enumerate(held) if index not in (3, 5)]
    assert second.tokenizer.decode(second.validation) == "".join("<|endoftext|>" + text for text in left)
    assert counts["characters"] == sum(map(len, left))


def test_the_statistics_add_up_and_empty_documents_are_counted(tmp_path):
    texts = [*sentences(200, 40), Document("empty", "g1", ""), Document("nothing", "g2", "")]
    prepared = prepare(Texts(texts), BPE, Injection(1, 1, document_tokens=9, canaries=True), 0.1, tmp_path)
    counts = prepared.statistics
    parts = counts["background"], counts["validation"]
    assert counts["empty_documents"] == 2
    assert [part["tokens"] for part in parts] == [len(prepared.background), len(prepared.validation)]
    assert counts["background"]["documents"] == len(prepared.background_starts)
    if not counts["validation"]["duplicates"]:
        assert sum(part["characters"] for part in parts) == sum(len(document.text) for document in texts)
    assert counts["seconds"] > 0


def test_what_the_corpus_left_out_is_reported(tmp_path):
    corpus = Texts(sentences(100, 40))
    wrapper = Texts(corpus.documents())
    wrapper.corpus, wrapper.removed, corpus.skipped, corpus.removed = corpus, 3, 5, 4
    prepared = prepare(wrapper, BPE, Injection(1, 1, document_tokens=9, canaries=True), 0.1, tmp_path)
    assert prepared.statistics["removed"] == {"removed": 7, "skipped": 5}


def test_more_groups_than_fit_are_split_by_hash_in_the_same_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(split_module, "EXACT", 100)
    corpus = Texts(Document(f"d{i}", f"g{i // 2}", f"document {i}") for i in range(8000))
    parts = split_module.split(corpus, Injection(held_out=0.3), 0.1, True, lambda done: None)
    assert parts.parts is None and parts.documents == 8000
    found = [parts.part(f"g{i}") for i in range(4000)]
    assert abs(found.count(split_module.HELD_OUT) - 1200) < 120  # four standard deviations
    assert abs(found.count(split_module.VALIDATION) - 400) < 80
    other = split_module.split(corpus, Injection(held_out=0.3, seed=1), 0.1, True, lambda done: None)
    assert [other.part(f"g{i}") for i in range(4000)] != found
    with pytest.raises(ValueError, match=r"held_out=0.95 and data.validation_share=0.1 leave none"):
        split_module.split(corpus, Injection(held_out=0.95), 0.1, True, lambda done: None)


def test_of_many_candidates_a_fixed_number_is_kept_in_their_order(tmp_path, monkeypatch):
    corpus = Texts(sentences(400, 40, pool=4000))
    injection = Injection(1, 1, document_tokens=30, held_out=0.5)
    monkeypatch.setattr(candidates_module, "MOST", 50)
    parts = split_module.split(corpus, injection, 0.1, True, lambda done: None)
    tok = BPE.build(d.text for d in corpus.documents())
    few = candidates_module.find_candidates(corpus, parts, injection, tok, str, lambda done: None)
    monkeypatch.setattr(candidates_module, "MOST", 4096)
    everything = candidates_module.find_candidates(corpus, parts, injection, tok, str, lambda done: None)
    assert len(everything.names) == everything.texts == few.texts == 200 and len(few.names) == 50
    places = [everything.names.index(name) for name in few.names]
    assert places == sorted(places) and np.array_equal(everything.ids[places], few.ids)
    assert places != list(range(50)) and max(places) > 100


def test_progress_is_told_in_documents_of_a_known_total_and_not_too_often(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "BATCH_DOCUMENTS", 10)
    now = iter(np.arange(0, 1e6, 0.1))
    monkeypatch.setattr(packing.time, "monotonic", lambda: float(next(now)))
    said = []
    corpus = Texts(sentences(300, 40, pool=4000))
    prepare(corpus, BPE, SMALL, 0.1, tmp_path, lambda message, **numbers: said.append((message, numbers)))
    done = [numbers["done"] for message, numbers in said if message == "tokenizing"]
    assert done == sorted(done) and 3 <= len(done) <= 30 and done[0] == 0
    assert all(n["unit"] == "documents" and n["total"] == 300 for m, n in said if m == "tokenizing")


class Generated:
    def __init__(self, documents):
        self._count = documents

    def documents(self):
        for index in range(self._count):
            draw = np.random.default_rng(index)
            yield Document(f"d{index}", f"g{index % 500}", " ".join(f"w{i}" for i in draw.integers(3000, size=80)))

    def fingerprint(self) -> str:
        return f"generated-{self._count}"


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "BATCH_DOCUMENTS", 64)
    monkeypatch.setattr("goldfish.data.corpus.remembered.MOST_CHARACTERS", 100_000)
    monkeypatch.setattr(candidates_module, "MOST", 64)
    BPE.build(d.text for d in Generated(300).documents()).save_pretrained(tmp_path / "tokenizer")
    source, peaks = Pretrained(str(tmp_path / "tokenizer")), []
    for documents in (100, 700, 2800):  # the first one warms up
        tracemalloc.start()
        prepare(Generated(documents), source, Injection(1, 1, document_tokens=30), 0.05, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]
