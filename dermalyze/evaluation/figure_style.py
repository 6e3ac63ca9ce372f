"""What all figures share: colours, the space around panels, and the line at the foot."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dermalyze.taxonomy import DISCLAIMER

# Okabe and Ito's palette: told apart with every kind of colour vision.
ORANGE, BLUE, VERMILION, GREEN = "#E69F00", "#0072B2", "#D55E00", "#009E73"
SKY, PURPLE, BLACK = "#56B4E9", "#CC79A7", "#000000"
GREY, PALE_GREY = "#595959", "#E0E0E0"

# A class's colour and dashes by its position, so that lines differ without colour too.
CLASS_COLOURS = (ORANGE, BLUE, VERMILION, GREEN, BLACK, SKY, PURPLE)
CLASS_DASHES = ("-", "--", "-.", ":", "-", "--", "-.", ":")


def layout() -> ConstrainedLayoutEngine:
    """Return the layout of a figure's panels."""
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches around each panel


def add_footer(figure: Figure) -> None:
    """Write what figures are not for at their foot."""
    figure.supxlabel(DISCLAIMER, fontsize=8, color=GREY)
