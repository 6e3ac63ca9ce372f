"""Heads: features_BCHW in, logits_BK out. One file a head."""
