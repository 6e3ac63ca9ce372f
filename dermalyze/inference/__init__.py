"""From pixels to probabilities, one way."""
