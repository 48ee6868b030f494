import numpy as np
import torch
from auditing.small_tokenizers import TEXT, byte_level

from goldfish.auditing.scoring import score
from goldfish.auditing.screening import Screen
from goldfish.auditing.windows import Cut, Windows
from goldfish.evaluation.forward import SplitModel
from goldfish.models.llama import LlamaFromConfig


def test_the_screen_of_a_first_window_is_its_p_z():
    """What is read before the first window's suffix is its prefix alone, so there the screen is exact."""
    tokenizer = byte_level()
    model = LlamaFromConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64)(len(tokenizer), 0, seed=0).eval()
    windows = next(Cut(8, 10, unit="tokens")(TEXT, tokenizer))
    first = Windows(*(field[:1] for field in windows))
    np.testing.assert_allclose(
        Screen(SplitModel(model), tokenizer, TEXT)(first), score(SplitModel(model), first.ids_WT, 8).log_p_W, atol=1e-4
    )


def test_every_token_is_read_once_with_at_least_the_context_of_a_stretch(monkeypatch):
    import goldfish.auditing.screening as screening

    tokenizer, text = byte_level(), TEXT * 3
    model = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)(len(tokenizer), 0, seed=0).eval()
    whole = Screen(SplitModel(model), tokenizer, text)._sum_N
    monkeypatch.setattr(screening, "STRETCH", 64)
    monkeypatch.setattr(screening, "_CONTEXT", 16)
    cut = Screen(SplitModel(model), tokenizer, text)._sum_N
    ids = torch.tensor(tokenizer(text)["input_ids"])
    with torch.no_grad():
        for at in (63, 64, 70, 111, 112, 160):
            low = (at - 16) // 48 * 48 if at >= 64 else 0
            seen = ids[low:at]
            expected = float(model(seen[None]).logits[0, -1].double().log_softmax(-1)[ids[at]])
            assert abs(cut[at + 1] - cut[at] - expected) < 1e-4
    assert len(whole) == len(cut) and np.isfinite(cut).all()
