"""Prepare the data: corpus -> tokenizer -> packed tokens, and documents injected a known number of times."""
