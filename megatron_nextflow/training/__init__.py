"""One model's training, from its beginning to its last step."""
