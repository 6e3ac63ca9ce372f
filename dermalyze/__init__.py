"""Dermalyze: train, compare and honestly evaluate classifiers of dermoscopic images.

For education and research, never for diagnosis.
"""

__version__ = "0.1.0"
