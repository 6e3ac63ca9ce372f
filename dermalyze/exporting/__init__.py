"""A trained model as a file for other programs, held against itself before it is written."""
