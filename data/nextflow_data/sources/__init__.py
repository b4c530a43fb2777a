"""What can documents be made from? One file a kind of source; `base` is what all of them offer, `entry` their settings."""
