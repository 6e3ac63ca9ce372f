"""Losses of (logits_BK, target_BK). One file a loss."""
