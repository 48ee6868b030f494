"""Data: corpus -> tokenizer -> packed tokens; documents injected a known number of times."""
