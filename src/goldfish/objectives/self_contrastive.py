"""Implement self-contrastive training (arXiv 2307.01542) against a premature model: one that was stopped early."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.config.checks import Count, Positive, checked
from goldfish.losses.linear_loss import linear_cross_entropy
from goldfish.models.llama import LlamaFromPretrained
from goldfish.objectives.base import Objective

MAKE_ONE = "goldfish-train mask=none trainer.max_steps=100 run_dir=logs/premature"
ROWS = 512  # targets in a chunk of the premature model's logits


class SelfContrastive(Objective):
    """Sum over kept targets the cross entropy of z1 + w z0: logits z1 of the trained model, z0 of the premature model.

    w = `weight` if the premature model's most likely token is among the last `window` tokens and the target is not;
    otherwise w = 0. The premature model is frozen and not saved; after training the trained model is used alone.

    `premature`: its run directory or Hugging Face folder; it must have the same tokenizer. The paper: weight 4.0,
    window 64 tokens, both models start from the same pretrained model (model=pretrained).
    """

    cost = 4 / 3  # the premature model (same size) adds one forward pass: a third of a step

    @checked
    def __init__(self, premature: str | None = None, weight: Positive = 4.0, window: Count = 64) -> None:
        self.weight, self.window = weight, window
        self._folder = _model_folder(premature)
        self._premature: LlamaForCausalLM | None = None

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return the loss sum in nats."""
        head_VD = model.lm_head.weight
        hidden_BSD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
        target_BS, keep_BS = ids_BT[:, 1:], keep_BT[:, 1:]
        premature = self._loaded(model)
        with torch.no_grad():
            other_BSD = premature.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
            other_VD = premature.lm_head.weight
            candidate_BS = keep_BS & ~among_the_last(target_BS, ids_BT[:, :-1], self.window)
            top_BS = torch.full_like(target_BS, -1)
            top_BS[candidate_BS] = torch.cat([(h @ other_VD.T).argmax(1) for h in other_BSD[candidate_BS].split(ROWS)])
            repeats_BS = among_the_last(top_BS, ids_BT[:, :-1], self.window)
        plain_BS = keep_BS & ~repeats_BS
        loss = linear_cross_entropy(hidden_BSD[plain_BS], head_VD, target_BS[plain_BS])
        # h1 W1' + w h0 W0' is one matrix product of the concatenated hidden states and heads.
        both_ND = torch.cat([hidden_BSD[repeats_BS], self.weight * other_BSD[repeats_BS]], dim=1)
        return loss + linear_cross_entropy(both_ND, torch.cat([head_VD, other_VD], dim=1), target_BS[repeats_BS])

    def _loaded(self, model: LlamaForCausalLM) -> LlamaForCausalLM:
        if self._premature is None:
            premature = LlamaFromPretrained(str(self._folder))(model.config.vocab_size, separator_id=0, seed=0)
            if premature.config.vocab_size != model.config.vocab_size:
                raise ValueError(
                    f"objective.premature={str(self._folder)!r}: knows {premature.config.vocab_size} tokens, the trained "
                    f"model {model.config.vocab_size}; make one with the same data.tokenizer, type: {MAKE_ONE}"
                )
            self._premature = premature.requires_grad_(False).eval().to(model.device, model.dtype)
        return self._premature


def among_the_last(token_BS: Tensor, ids_BS: Tensor, window: int) -> Tensor:
    """Return whether each token is among ids[s - window + 1 .. s] of its row: bool (B, S), with O(B S) memory."""
    found_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
    length = ids_BS.shape[1]
    for back in range(min(window, length)):
        found_BS[:, back:] |= token_BS[:, back:] == ids_BS[:, : length - back]
    return found_BS


def _model_folder(path: str | None) -> Path:
    """Return the Hugging Face folder at `path` or in it; raise ValueError with the command that creates one."""
    if path is None:
        raise ValueError(
            "premature=None: no value yet; type objective.premature=RUN, the directory of a short run with the same "
            f"data.tokenizer; this makes one: {MAKE_ONE}"
        )
    for folder in (Path(path) / "model", Path(path)):
        if (folder / "config.json").is_file():
            return folder
    if (Path(path) / "config.yaml").is_file():
        raise ValueError(f"premature={path!r}: that run is not finished; type its command again, and it continues")
    raise ValueError(f"premature={path!r}: no model there; this makes one: {MAKE_ONE} (with the same data.tokenizer)")
