"""The goldfish loss against masked full logits: any batch, any split of it, any way of running it.

Run as a program (`python tests/losses/test_goldfish_loss.py RANK DIRECTORY`) it is one of two processes of a test below.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from goldfish.losses.linear_loss import goldfish_loss, target_count

V, D = 60, 16


def batch(rows: int = 4, tokens: int = 12, share: float = 0.7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, tokens, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    ids = torch.randint(0, V, (rows, tokens), generator=generator)
    return hidden, weight, ids, torch.rand(rows, tokens, generator=generator) < share


def oracle(hidden, weight, ids, keep, count=None):
    losses = F.cross_entropy((hidden @ weight.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = keep[:, 1:].flatten()
    return losses[kept].sum() / (kept.sum() if count is None else count)


def assert_same(loss, expected, wrt, tolerance=1e-5):
    pairs = [(loss, expected), *zip(*(torch.autograd.grad(x, wrt) for x in (loss, expected)), strict=True)]
    for a, b in pairs:
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12


batches = st.builds(
    batch,
    rows=st.integers(1, 5),
    tokens=st.integers(2, 20),
    share=st.sampled_from([0.2, 0.75, 1.1]),
    seed=st.integers(0, 99),
).filter(lambda b: b[3][:, 1:].any())


@settings(max_examples=50, deadline=None)
@given(batches)
def test_loss_and_gradients_are_those_of_masked_full_logits(given):
    hidden, weight, ids, keep = given
    assert_same(goldfish_loss(hidden, weight, ids, keep), oracle(hidden, weight, ids, keep), (hidden, weight))


def test_without_a_mask_it_is_the_cross_entropy_of_torch():
    hidden, weight, ids, keep = batch(share=1.1)
    expected = F.cross_entropy((hidden @ weight.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_same(goldfish_loss(hidden, weight, ids, keep), expected, (hidden, weight))


@settings(max_examples=25, deadline=None)
@given(batches, st.integers(1, 3))
def test_appended_dropped_rows_change_nothing(given, extra):
    hidden, weight, ids, keep = given
    more = [torch.cat([x, x[:1].expand(extra, *x.shape[1:])]) for x in (hidden, ids, keep)]
    more[2][-extra:] = False
    loss = goldfish_loss(more[0], weight, more[1], more[2])
    assert_same(loss, goldfish_loss(hidden, weight, ids, keep), (hidden, weight))


@settings(max_examples=25, deadline=None)
@given(batches, st.integers(0, 99))
def test_the_order_of_rows_changes_nothing(given, seed):
    hidden, weight, ids, keep = given
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    loss = goldfish_loss(hidden[order], weight, ids[order], keep[order])
    assert_same(loss, goldfish_loss(hidden, weight, ids, keep), (hidden, weight))


@settings(max_examples=25, deadline=None)
@given(batches, st.integers(1, 4), st.booleans())
def test_any_split_of_the_batch_adds_up_to_the_whole(given, size, as_tensor):
    hidden, weight, ids, keep = given
    count = target_count(keep) if as_tensor else int(target_count(keep))
    parts = zip(*(x.split(size) for x in (hidden, ids, keep)), strict=True)
    loss = sum(goldfish_loss(h, weight, i, k, count=count) for h, i, k in parts)
    assert_same(loss, goldfish_loss(hidden, weight, ids, keep), (hidden, weight))


def test_dropped_targets_and_the_states_before_them_do_not_matter():
    hidden, weight, ids, keep = batch()
    changed_ids, changed_hidden = torch.where(keep, ids, 0), hidden.detach().clone()
    changed_hidden[:, :-1][~keep[:, 1:]] = 1e4
    changed_hidden[:, -1] = float("nan")
    assert goldfish_loss(changed_hidden, weight, changed_ids, keep) == goldfish_loss(hidden, weight, ids, keep)
    goldfish_loss(hidden, weight, ids, keep).backward()
    assert torch.equal(hidden.grad[:, :-1].abs().sum(-1) > 0, keep[:, 1:]) and not hidden.grad[:, -1].any()


@pytest.mark.parametrize("count", [None, 0, 5, torch.tensor(0), torch.tensor(0.0)])
def test_nothing_kept_is_zero_with_zero_gradients(count):
    hidden, weight, ids, keep = batch(share=0)
    for tokens in (12, 1):
        some = [x[:, :tokens] for x in (hidden, ids, keep)]
        loss = goldfish_loss(some[0], weight, *some[1:], count=count)
        gradients = torch.autograd.grad(loss, (hidden, weight))
        assert loss == 0 and loss.dtype == torch.float32 and all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_the_first_token_is_nobodys_target():
    hidden, weight, ids, keep = batch(share=0)
    keep[:, 0] = True
    assert goldfish_loss(hidden, weight, ids, keep) == 0 and target_count(keep) == 0


@pytest.mark.parametrize("count", [3, 0.5, torch.tensor(7), torch.tensor(0.25)])
def test_count_divides_the_sum_also_as_a_fraction(count):
    given = batch()
    assert goldfish_loss(*given, count=count).item() == pytest.approx(oracle(*given, count=count).item(), rel=1e-5)


def test_int32_ids_give_the_same():
    hidden, weight, ids, keep = batch()
    assert goldfish_loss(hidden, weight, ids.int(), keep) == goldfish_loss(hidden, weight, ids, keep)


def test_what_does_not_fit_is_refused_by_name():
    hidden, weight, ids, keep = batch()
    for error, message, arguments in (
        (ValueError, r"keep_BT.*\(4, 12\).*got \(4, 11\)", (hidden, weight, ids, keep[:, 1:])),
        (TypeError, r"keep_BT.*torch.bool.*got torch.int64", (hidden, weight, ids, keep.long())),
        (ValueError, r"ids_BT.*\(4, 12\).*got \(48,\)", (hidden, weight, ids.flatten(), keep)),
        (TypeError, r"ids_BT.*got torch.float32", (hidden, weight, ids.float(), keep)),
        (ValueError, r"hidden_BTD.*\(B, T, D\).*got \(48, 16\)", (hidden.flatten(0, 1), weight, ids, keep)),
        (ValueError, r"weight_VD.*\(V, D\) with D = 16.*got \(16, 60\)", (hidden, weight.T, ids, keep)),
    ):
        with pytest.raises(error, match=message):
            goldfish_loss(*arguments)
    with pytest.raises(ValueError, match=r"count.*one number.*got shape \(2,\)"):
        goldfish_loss(hidden, weight, ids, keep, count=torch.tensor([1, 2]))


# A real Llama


@pytest.fixture(scope="module")
def llama():
    from goldfish.models.llama import LlamaFromConfig

    model = LlamaFromConfig(32, 1, 2, 64)(vocab_size=100, separator_id=0, seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def llama_loss(model, ids, keep):
    return goldfish_loss(model.model(ids).last_hidden_state, model.lm_head.weight, ids, keep)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.float() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_tied_embeddings_get_the_gradients_of_transformers(llama, dtype, tolerance):
    """In bfloat16 both are judged by float32, and ours may be at most a tenth worse."""
    ids = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(0))
    exact = gradients(llama, llama(ids, labels=ids).loss)
    model = copy.deepcopy(llama).to(dtype)
    losses = {
        "ours": llama_loss(model, ids, torch.ones_like(ids, dtype=torch.bool)),
        "theirs": model(ids, labels=ids).loss,
    }
    found = {name: gradients(model, loss) for name, loss in losses.items()}
    error = {
        name: sum((g[p] - exact[p]).norm() ** 2 for p in exact) ** 0.5
        / sum(e.norm() ** 2 for e in exact.values()) ** 0.5
        for name, g in found.items()
    }
    assert losses["ours"].item() == pytest.approx(llama(ids, labels=ids).loss.item(), rel=tolerance)
    assert error["ours"] < tolerance and (dtype == torch.float32 or error["ours"] < 1.1 * error["theirs"])


def test_tied_embeddings_with_a_mask_get_the_gradients_of_masked_full_logits(llama):
    from goldfish.masks import HashedMask

    ids = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(0))
    keep = HashedMask(k=3, h=2)(ids)
    assert target_count(~keep) > 0
    logits = llama(ids).logits[:, :-1]
    expected = F.cross_entropy(logits[keep[:, 1:]], ids[:, 1:][keep[:, 1:]])
    ours, theirs = gradients(llama, llama_loss(llama, ids, keep)), gradients(llama, expected)
    assert all((ours[p] - theirs[p]).norm() <= 1e-5 * theirs[p].norm() for p in theirs)


def test_autocast_around_a_llama_gives_the_gradients_of_autocast_full_logits(llama):
    ids = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids, dtype=torch.bool)
    exact = gradients(llama, llama(ids, labels=ids).loss)
    with torch.autocast("cpu", torch.bfloat16):
        loss = llama_loss(llama, ids, keep)
    found = gradients(llama, loss)
    assert all((found[p] - exact[p]).norm() < 5e-2 * exact[p].norm() for p in exact)
    assert all(p.grad.dtype == torch.float32 for p in llama.parameters())


# Ways of running it


class Small(nn.Module):
    """A model of one layer whose loss is computed inside forward, as FSDP2 and torch.compile of a whole model want."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V, bias=False)

    def forward(self, ids, keep, count=None):
        hidden = self.layer(self.embedding(ids)).relu()
        return goldfish_loss(hidden, self.head.weight, ids, keep, count=count)


def test_a_compiled_model_gives_the_same_and_is_not_compiled_anew_for_each_count():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    model, counter = Small(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    for seed in range(6):
        _, _, ids, keep = batch(share=(seed + 1) / 7, seed=seed)
        ours, eager = compiled(ids, keep), model(ids, keep)
        assert_same(ours, eager, list(model.parameters()), tolerance=1e-6)
    assert counter.frame_count == 1
    torch.compiler.reset()


def uneven():
    """Eight rows of 20 tokens; the first four keep nearly all targets, the others nearly none, one of them none."""
    _, _, ids, keep = batch(rows=8, tokens=20, share=0.9)
    keep[4:] &= torch.rand(4, 20, generator=torch.Generator().manual_seed(1)) < 0.1
    keep[7] = False
    counts = keep[:, 1:].sum(1)
    assert counts[:4].min() > 14 and counts[4:].max() < 5 and counts[7] == 0
    return ids, keep


def parameters(model, attribute):
    whole = ((name, getattr(p, attribute)) for name, p in model.named_parameters())
    return {name: (x.full_tensor() if hasattr(x, "full_tensor") else x).clone() for name, x in whole}


def one_process():
    model, (ids, keep) = Small(), uneven()
    loss = model(ids, keep)
    loss.backward()
    return loss.detach(), parameters(model, "grad")


def test_micro_batches_with_very_different_counts_add_up_to_the_batch():
    model, (ids, keep) = Small(), uneven()
    expected_loss, expected = one_process()
    total = 0.0
    for rows in range(0, 8, 2):
        loss = model(ids[rows : rows + 2], keep[rows : rows + 2], count=target_count(keep))
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, gradient in parameters(model, "grad").items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What DDP and FSDP2 computed in two processes with gloo, four rows each."""
    directory = tmp_path_factory.mktemp("gloo")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, __file__, str(r), str(directory)], env=environment) for r in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return torch.load(directory / "found.pt")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_make_the_loss_and_gradients_of_one(two_processes, kind):
    expected_loss, expected = one_process()
    loss, found = two_processes[kind]
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def one_of_two(rank: int, directory: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    whole_ids, whole_keep = uneven()
    ids, keep = (x.chunk(2)[rank] for x in (whole_ids, whole_keep))
    count = target_count(keep)
    dist.all_reduce(count)
    found = {}
    for kind in ("ddp", "fsdp2"):
        model = Small()
        if kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            for part in (model.layer, model):
                fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
        loss = model(ids, keep, count=count / 2)  # both average gradients over the processes
        loss.backward()
        loss = loss.detach() / 2
        dist.all_reduce(loss)
        found[kind] = loss, parameters(getattr(model, "module", model), "grad")
    if rank == 0:
        torch.save(found, f"{directory}/found.pt")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), sys.argv[2])
