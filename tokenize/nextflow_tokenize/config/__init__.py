"""The settings of tokenizers, packing and the vision tokenizer's own recipes. No torch."""
