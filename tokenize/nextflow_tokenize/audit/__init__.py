"""Is every shard what its manifest says?"""
