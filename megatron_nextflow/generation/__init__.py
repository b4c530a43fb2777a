"""From a checkpoint and prompts to images and text."""
