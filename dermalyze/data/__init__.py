"""Tables, splits, pixels and batches."""
