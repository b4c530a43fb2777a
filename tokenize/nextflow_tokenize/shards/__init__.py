"""The shard format: how a set is written, named and read."""
