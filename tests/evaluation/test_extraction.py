import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq

from goldfish.data.corpus import Factbook
from goldfish.data.injection import Injection
from goldfish.data.packing import InjectedDocument, prepare
from goldfish.data.tokenizer import TrainedBPE
from goldfish.evaluation.extraction import Extraction, compare, extract, forced_matches, greedy, summarize
from goldfish.masks import Hashed
from goldfish.model import LlamaFromConfig


def slow_lcs(a, b):
    """Longest common subsequence by its recurrence."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(true, made):
    common = slow_lcs(true, made)
    precision, recall = common / len(made), common / len(true)
    f = 2 * precision * recall / (precision + recall) if common else 0.0
    assert compare(true, made)["rouge_l"] == pytest.approx(f)
    assert LCSseq.similarity(true, made) == common


def test_exact_match_and_longest_prefix():
    assert compare([1, 2, 3], [1, 2, 3]) == {"exact_match": True, "rouge_l": 1.0, "longest_prefix": 3}
    assert compare([1, 2, 3], [1, 9, 3])["longest_prefix"] == 1
    assert not compare([1, 2, 3], [1, 2])["exact_match"]


def overfitted(ids):
    """A model that continues some rows exactly and others not."""
    model = LlamaFromConfig(32, 1, 2, 64)(vocab_size=50, separator_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        model(ids[:3], labels=ids[:3]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_greedy_equals_the_slowest_decoding_and_one_forced_pass_finds_its_exact_matches():
    ids = torch.randint(1, 50, (6, 24), generator=torch.Generator().manual_seed(0))
    model = overfitted(ids)
    made = greedy(model, ids[:, :12], 12)
    slow = ids[:, :12]
    with torch.no_grad():
        for _ in range(12):
            slow = torch.cat([slow, model(slow, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, slow[:, 12:])
    exact = (made == ids[:, 12:]).all(dim=1)
    assert torch.equal(forced_matches(model, ids, 12, batch_size=4).all(dim=1), exact)
    assert exact.any() and not exact.all()


def test_a_document_shorter_than_prefix_and_suffix_is_refused_by_id():
    short = InjectedDocument("tiny", "injected", [1, 2, 3], "text")
    with pytest.raises(ValueError, match=r"document 'tiny' has 3 tokens.*prefix_tokens=2.*suffix_tokens=2"):
        Extraction(2, 2).prompts([short], separator_id=0)
    with pytest.raises(ValueError, match="suffix_tokens=0: must be at least 1"):
        Extraction(2, 0)


def test_a_suffix_shorter_than_the_mask_s_window_is_extracted_all_the_same(cache):
    prepared = prepare(
        Factbook(), TrainedBPE(512), Injection(documents=2, never_seen=2, document_tokens=32), 0.05, cache
    )
    model = LlamaFromConfig(32, 1, 2, 64)(vocab_size=512, separator_id=prepared.separator, seed=0)
    ask = lambda settings: extract(  # noqa: E731
        model, prepared.tokenizer, prepared.separator, prepared.documents, {}, settings, Hashed(k=2, h=13)
    )
    short, long = ask(Extraction(4, 4)), ask(Extraction(4, 28))
    assert len(short) == 4 and [row["kept"] for row in short] == [row["kept"][:4] for row in long]
    assert not all(kept for row in long for kept in row["kept"])


def test_the_summary_keeps_injected_and_never_seen_apart():
    rows = [{"split": "injected", "exact_match": True, "rouge_l": 1.0, "longest_prefix": 4},
            {"split": "injected", "exact_match": False, "rouge_l": 0.5, "longest_prefix": 2},
            {"split": "never_seen", "exact_match": False, "rouge_l": 0.1, "longest_prefix": 0}]  # fmt: skip
    assert summarize(rows) == {
        "exact_match": 0.5, "rouge_l": 0.75, "longest_prefix": 3.0,
        "never_seen_exact_match": 0.0, "never_seen_rouge_l": 0.1, "never_seen_longest_prefix": 0.0,
    }  # fmt: skip
