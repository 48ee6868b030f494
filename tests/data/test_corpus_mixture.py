"""Mixtures, and the wrappers that clean: Normalized, Deduplicated."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfish.data.corpus import Deduplicated, Document, Mixture, Normalized


class Texts:
    """A corpus of given texts (or lists of ids)."""

    def __init__(self, *texts) -> None:
        self.texts = texts

    def documents(self):
        for number, text in enumerate(self.texts):
            ids = None if isinstance(text, str) else np.array(text, "uint16")
            yield Document(str(number), f"g{number}", "" if ids is not None else text, ids)

    def fingerprint(self):
        return repr(self.texts)


def texts(corpus):
    found = [d.text if d.ids is None else d.ids.tolist() for d in corpus.documents()]
    assert found == [d.text if d.ids is None else d.ids.tolist() for d in corpus.documents()]
    return found


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    tokenized=st.booleans(),
)
def test_at_any_point_each_source_has_its_share_as_nearly_as_documents_allow(lengths, weights, tokenized):
    sources = {f"s{i}": Texts(*([1] * n if tokenized else "x" * n for n in ns)) for i, ns in enumerate(lengths)}
    weights = dict(zip(sources, weights, strict=False))
    longest = {name: max(ns) for name, ns in zip(sources, lengths, strict=True)}
    taken = dict.fromkeys(sources, 0)
    for document in Mixture(sources, weights).documents():
        name = document.id.split("/")[0]
        taken[name] += len(document.text if document.ids is None else document.ids)
        total = sum(taken.values())
        for source in sources:
            excess = taken[source] - weights[source] / sum(weights.values()) * total
            others = sum(longest.values()) - longest[source]
            assert -others - 1e-6 <= excess <= longest[source] + 1e-6
    assert any(taken[name] == sum(ns) for name, ns in zip(sources, lengths, strict=True))


def test_a_mixture_names_the_source_in_ids_and_groups_and_ends_with_the_first_that_is_used_up():
    mixture = Mixture({"a": Texts("aa", "aa"), "b": Texts(*"bbbbbbb")}, {"a": 2.0, "b": 1.0})
    expected = [("a/0", "a/g0"), ("b/0", "b/g0"), ("a/1", "a/g1"), ("b/1", "b/g1")]
    assert [(d.id, d.group) for d in mixture.documents()] == expected
    assert [(d.id, d.group) for d in mixture.documents()] == expected


def test_the_fingerprint_of_a_mixture_changes_with_sources_names_and_weights():
    def fingerprint(name="b", text="t", weight=1.0):
        return Mixture({"a": Texts("x"), name: Texts(text)}, {"a": 1.0, name: weight}).fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(name="c"), fingerprint(text="u"), fingerprint(weight=2.0)}) == 4


@pytest.mark.parametrize(
    ("sources", "weights", "words"),
    [
        ({}, {}, r"sources=\{\}: give at least one"),
        ({"a": Texts()}, {"b": 1.0}, "weights: given for b, but the sources are a; give each source one weight"),
        ({"a": Texts(), "b": Texts()}, {"a": 1.0}, "weights: given for a, but the sources are a, b"),
        ({"a": Texts()}, {"a": 0.0}, r"weights\.a=0.0: must be more than 0"),
        ({"a": Texts()}, {"a": float("nan")}, r"weights\.a=nan: must be more than 0"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(sources, weights, words):
    with pytest.raises(ValueError, match=words):
        Mixture(sources, weights)


def test_text_and_token_ids_are_not_mixed():
    with pytest.raises(ValueError, match=r"sources\.b: tokenized sources and text cannot be mixed"):
        list(Mixture({"a": Texts("x"), "b": Texts([1])}, {"a": 1.0, "b": 1.0}).documents())


# Normalized


def test_each_form_changes_what_it_names_and_nothing_else():
    text = "ﬁne co\u00adop\u200berate\ufeff  and\t two\u00a0\u00a0spaces\r\n\n  kept"
    assert texts(Normalized(Texts(text), [])) == [text]
    assert texts(Normalized(Texts(text), ["soft_hyphens"])) == [
        "ﬁne cooperate  and\t two\u00a0\u00a0spaces\r\n\n  kept"
    ]
    assert texts(Normalized(Texts(text), ["nfkc"])) == [unicodedata.normalize("NFKC", text)]
    assert texts(Normalized(Texts(text), ["spaces"])) == ["ﬁne co\u00adop\u200berate\ufeff and two spaces\r\n\n kept"]
    assert texts(Normalized(Texts(text), ["spaces", "nfkc", "soft_hyphens"])) == [
        "fine cooperate and two spaces\r\n\n kept"
    ]


@given(
    st.text(
        st.sampled_from("ae\u0301ﬁ¨ \u00a0\u3000\t\n\r\u00ad\u200d\ufeff\u1100\u1161") | st.characters(codec="utf-8")
    )
)
def test_normalizing_twice_changes_nothing_and_keeps_the_line_ends(text):
    once = Normalized(Texts(text), ["nfkc", "soft_hyphens", "spaces"])
    twice = Normalized(once, ["nfkc", "soft_hyphens", "spaces"])
    assert texts(once) == texts(twice)
    for changed in texts(once):
        assert changed.count("\n") == text.count("\n") and "  " not in changed and "\u00ad" not in changed


def test_documents_that_normalizing_empties_are_dropped_and_token_ids_are_refused():
    assert texts(Normalized(Texts("\u00ad", "a"), ["soft_hyphens"])) == ["a"]
    assert texts(Normalized(Texts([1, 2]), [])) == [[1, 2]]
    with pytest.raises(ValueError, match="document '0' is already tokenized"):
        list(Normalized(Texts([1, 2]), ["nfkc"]).documents())
    with pytest.raises(ValueError, match=r"forms: 'nfc'; must be among nfkc, soft_hyphens, spaces"):
        Normalized(Texts(), ["nfc"])


def test_the_fingerprints_of_wrappers_change_with_settings_and_corpus():
    def both(text="t", forms=("nfkc",), kind="exact"):
        return Deduplicated(Normalized(Texts(text), list(forms)), kind).fingerprint()

    assert both() == both() and len({both(), both("u"), both(forms=()), both(forms=("nfkc", "spaces"))}) == 4


# Deduplicated

WORDS = [f"word{number}" for number in range(200)]


def test_equal_documents_are_kept_once_and_counted():
    corpus = Deduplicated(Texts("a", "bb", "a", "a ", "bb"), "exact")
    assert texts(corpus) == ["a", "bb", "a "] and (corpus.removed, corpus.removed_length) == (2, 3)
    corpus = Deduplicated(Texts([1, 2], [1], [1, 2]), "exact")
    assert texts(corpus) == [[1, 2], [1]] and (corpus.removed, corpus.removed_length) == (1, 2)


@pytest.fixture
def near():
    pytest.importorskip("datasketch", reason="needs the extra corpora")


def edited(share):
    """WORDS with its last words replaced: about (1 - share) / (1 + share) Jaccard similarity."""
    kept = round(len(WORDS) * (1 - share))
    return WORDS[:kept] + [f"other{number}" for number in range(len(WORDS) - kept)]


def test_nearly_equal_documents_are_kept_once_and_others_stay(near):
    one, close, far, other = (" ".join(words) for words in (WORDS, edited(0.03), edited(0.4), reversed(WORDS)))
    corpus = Deduplicated(Texts(one, far, close, other, "short", "short text", "short"), "near")
    assert texts(corpus) == [one, far, other, "short", "short text"]
    assert (corpus.removed, corpus.removed_length) == (2, len(close) + len("short"))
    assert texts(Deduplicated(Texts(one, far), "near", threshold=0.3)) == [one]


def test_documents_that_only_hash_alike_are_compared_and_stay(near):
    # 15 texts with 0.3 similarity to each other: at threshold 0.5 the index proposes some of the 105 pairs.
    variants = [" ".join([*WORDS[:92], *(f"v{variant}_{n}" for n in range(108))]) for variant in range(15)]
    assert texts(Deduplicated(Texts(*variants), "near", threshold=0.5)) == variants


def test_nearly_equal_token_ids_are_kept_once(near):
    one = list(range(300))
    corpus = Deduplicated(Texts(one, [*one[:-5], 0, 0, 0, 0, 0], one[::-1]), "near")
    assert texts(corpus) == [one, one[::-1]] and corpus.removed == 1


@given(st.lists(st.sampled_from(["a", "b c", "a b c d e f g", "a b c d e f h"]), max_size=12))
def test_each_distinct_text_is_kept_where_it_first_stands(given_texts):
    assert texts(Deduplicated(Texts(*given_texts), "exact")) == list(dict.fromkeys(given_texts))


def test_settings_of_deduplication_out_of_range_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="kind='fuzzy': must be 'exact' or 'near'"):
        Deduplicated(Texts(), "fuzzy")
    with pytest.raises(ValueError, match=r"threshold=0: a Jaccard similarity, more than 0 and at most 0\.95"):
        Deduplicated(Texts(), "exact", threshold=0)
    with pytest.raises(ValueError, match=r"threshold=0\.99: .* for equal documents, kind='exact'"):
        Deduplicated(Texts(), "near", threshold=0.99)
    monkeypatch.setattr("goldfish.tools.extras.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'deduplicate=near needs .* \(datasketch\); type: pip install "goldfish\[corpora'
    ):
        Deduplicated(Texts(), "near")
