"""Runs to be set side by side: which there are, what sets them apart, what they were judged on."""
