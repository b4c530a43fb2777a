"""The vision tokenizer: dual-codebook, multi-scale residual quantisation, its training, evaluation and identity.

Importing this package loads no torch; `identity` never does, the other modules do.
"""
