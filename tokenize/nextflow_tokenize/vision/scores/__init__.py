"""How good a vision tokenizer is, in numbers and in sheets."""
