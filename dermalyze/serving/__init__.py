"""Trained models that answer over HTTP."""
