"""The vision tokenizer's commands."""
