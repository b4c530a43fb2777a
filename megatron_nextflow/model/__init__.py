"""The model: embeddings, attention, loss, and what Megatron is told of it."""
