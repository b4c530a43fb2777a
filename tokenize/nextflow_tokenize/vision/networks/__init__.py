"""Encoders, decoders, the semantic branch and the discriminator."""
