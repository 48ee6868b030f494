"""The goldfish loss from hidden states and LM head, without (B, T, V) logits; torch only."""
