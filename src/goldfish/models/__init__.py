"""Build the Llama that is trained, with new or pretrained weights, and estimate its parameters, FLOPs and memory."""
