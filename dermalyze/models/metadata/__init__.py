"""Fusions: features_BCHW and metadata_BM in, a map for the head out. One file a fusion."""
