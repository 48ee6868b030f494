"""Compute the goldfish loss from hidden states and LM head without (B, T, V) logits. Needs torch only."""
