"""The estimates against real models, optimizers and autograd."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from goldfish.models.estimate import activation_bytes, empty, flops_per_token, memory, optimizer_bytes, parameters
from goldfish.models.llama import LlamaFromConfig, count_parameters
from goldfish.objectives import NextToken
from goldfish.training.optimizers import AdamW, Muon

ROWS, LENGTH, VOCABULARY = 3, 48, 320
SOURCES = [
    LlamaFromConfig(64, 3, 4, 160, kv_heads=2),
    LlamaFromConfig(48, 4, 2, 100, tie_embeddings=False),
]


def storages(found):
    """Bytes of tensors, those of one storage counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


@pytest.mark.parametrize("source", SOURCES)
def test_parameters_are_those_of_the_real_model(source):
    model = source(VOCABULARY, 0, 0)
    found = parameters(source.config(VOCABULARY, 0))
    assert found.total == count_parameters(model)
    assert found.non_embedding == sum(p.numel() for p in model.model.layers.parameters()) + model.config.hidden_size


@pytest.mark.parametrize("source", SOURCES)
def test_flops_are_those_that_torch_counts(source):
    model = source(VOCABULARY, 0, 0)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids).logits.sum().backward()
    # Torch counts two small things more: the angles of the rotary embedding, forward only.
    assert counter.get_total_flops() / ids.numel() == pytest.approx(flops_per_token(model.config, LENGTH), rel=1e-3)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
@pytest.mark.parametrize(("source", "precision"), [(SOURCES[0], "32-true"), (SOURCES[1], "bf16-true")])
def test_weights_gradients_and_optimizer_take_the_bytes_of_real_ones(source, optimizer, precision):
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = source(VOCABULARY, 0, 0).to(dtype)
    made = optimizer(model)
    loss = NextToken()(model, ids := torch.randint(VOCABULARY, (ROWS, LENGTH)), torch.ones_like(ids, dtype=torch.bool))
    loss.backward()
    made.step()
    states = [state for part in getattr(made, "parts", [made]) for state in part.state.values()]
    real = storages([t for state in states for t in state.values() if isinstance(t, torch.Tensor)])
    assert optimizer_bytes(optimizer, empty(model.config, dtype)) == real
    found = memory(model.config, optimizer, precision, 2, 4, None, LENGTH)[0]
    assert found.weights == storages(model.parameters())
    assert found.gradients == storages([p.grad for p in model.parameters()])
    assert found.optimizer == real


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_take_the_bytes_that_autograd_keeps(source, precision, checkpointing):
    model = source(VOCABULARY, 0, 0).to(torch.bfloat16 if precision == "bf16-true" else torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, kept = torch.randint(VOCABULARY, (ROWS, LENGTH)), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
    ):
        loss = NextToken()(model, ids, torch.ones_like(ids, dtype=torch.bool))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    real = storages([tensor for pointer, tensor in kept.items() if pointer not in own])
    whole, checkpointed = activation_bytes(model.config, ROWS, LENGTH, precision)
    assert loss.requires_grad
    # Autograd's hooks are not told of the rotary embedding's angles, which a checkpoint holds by itself.
    if checkpointing:  # the estimate also holds one layer's activations, which come back one after the other
        one = (whole - activation_bytes(_shallow(model.config), ROWS, LENGTH, precision)[0]) / (
            len(model.model.layers) - 1
        )
        assert checkpointed - one == pytest.approx(real, rel=0.05)
    else:
        assert whole == pytest.approx(real, rel=0.01)


def _shallow(config):
    return type(config)(**{**config.to_dict(), "num_hidden_layers": 1})


def test_strategies_divide_what_they_say_they_divide():
    config = LlamaFromConfig(64, 12, 4, 160, kv_heads=2, tie_embeddings=False).config(VOCABULARY, 0)
    single, ddp, fsdp, *stages, tensor = memory(config, AdamW(), "bf16-mixed", 2, 8, None, LENGTH)
    assert ddp.weights == single.weights and ddp.gradients == 2 * single.gradients
    assert ddp.activations < single.activations, "half of the rows"
    assert (2 * fsdp.gradients, 2 * fsdp.optimizer) == (single.gradients, single.optimizer)
    assert single.weights / 2 < fsdp.weights < single.weights
    one, two, three = stages
    total = single.weights // 4
    # The paper of ZeRO, figure 1: 2 + 2 + (4 + 4 + 4) bytes a parameter; each stage divides one more of them.
    assert one.weights + one.gradients + one.optimizer == pytest.approx(total * (2 + 2 + 12 / 2), rel=1e-3)
    assert two.gradients == one.gradients / 2 and three.weights < two.weights
    layers = sum(p.numel() for p in empty(config).model.layers.parameters() if p.ndim == 2)
    assert tensor.gradients == single.gradients - 4 * layers / 2
    refused = memory(config, AdamW(), "bf16-mixed", 4, 8, None, LENGTH)[-1]
    assert refused.problem == "num_key_value_heads=2 is no multiple of 4" and refused.total() == 0
