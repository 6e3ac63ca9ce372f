"""Networks: uint8 images in, logits out."""
