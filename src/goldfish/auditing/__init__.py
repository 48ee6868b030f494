"""The audit of whole books: how likely a model is to continue each window of a text as the text goes on."""
