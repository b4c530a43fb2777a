"""The process and its machine: device, signals, files, what processes tell one another."""
