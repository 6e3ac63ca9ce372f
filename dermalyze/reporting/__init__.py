"""What an evaluation says: numbers with intervals, figures, and a page for people. No torch."""
