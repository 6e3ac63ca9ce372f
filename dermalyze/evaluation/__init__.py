"""Arrays in, numbers or a figure out. No torch."""
