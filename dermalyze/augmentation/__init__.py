"""Whole-batch augmentation on the training device."""
