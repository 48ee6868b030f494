"""The Llama that is trained: new, or with pretrained weights; what it costs in parameters, FLOPs and memory."""
