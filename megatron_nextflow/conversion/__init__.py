"""Qwen2.5-VL's weights in, and back out."""
