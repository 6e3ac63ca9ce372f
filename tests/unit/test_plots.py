from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dermalyze.errors import DataError
from dermalyze.evaluation.plots import (
    DPI,
    confusion_matrix_figure,
    save_figure,
    training_curves_figure,
)
from dermalyze.taxonomy import DISCLAIMER

COUNTS = np.array([[1500, 375, 125], [0, 0, 0], [1, 2, 5]])
CLASSES = ["nv", "df", "mel"]


def luminance(colour: object) -> float:
    """Relative luminance of an sRGB colour, in [0, 1] (WCAG 2.1)."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def lightness(colour: object) -> float:
    """CIE L*, in [0, 100]."""
    y = luminance(colour)
    return 116 * np.cbrt(y) - 16 if y > 216 / 24389 else y * 24389 / 27


def history(epochs: int = 6) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "train/loss": 2.0 / epoch,
            "val/loss": 2.2 / epoch,
            "train/accuracy": 1 - 0.5 / epoch,
            "val/accuracy": 1 - 0.6 / epoch,
            "train/balanced_accuracy": 1 - 0.7 / epoch,
            "val/balanced_accuracy": 1 - 0.8 / epoch,
            "val/macro_f1": 0.5,
            "val/macro_auc": None,
            "lr": 1e-3 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def curves(figure: Figure) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """For each panel: label -> (x, y) of the lines with more than the best epoch's mark."""
    return [
        {
            str(line.get_label()): (np.array(line.get_xdata()), np.array(line.get_ydata()))
            for line in axes.get_lines()
            if not str(line.get_label()).startswith("best epoch")
        }
        for axes in figure.axes
    ]


class TestConfusionMatrix:
    def test_every_cell_says_count_and_row_share(self) -> None:
        axes = confusion_matrix_figure(COUNTS, CLASSES, "Test split").axes[0]
        cells = {text.get_position(): text.get_text() for text in axes.texts}
        assert cells == {
            (0, 0): "1,500\n75.0%",
            (1, 0): "375\n18.8%",
            (2, 0): "125\n6.2%",
            (0, 1): "0\n–",
            (1, 1): "0\n–",
            (2, 1): "0\n–",
            (0, 2): "1\n12.5%",
            (1, 2): "2\n25.0%",
            (2, 2): "5\n62.5%",
        }

    def test_colour_is_the_row_share(self) -> None:
        axes = confusion_matrix_figure(COUNTS, CLASSES, "t").axes[0]
        (image,) = axes.images
        shown = np.ma.filled(np.ma.asarray(image.get_array()).astype(float), np.nan)
        nan = np.nan
        np.testing.assert_allclose(shown, [[0.75, 0.1875, 0.0625], [nan] * 3, [0.125, 0.25, 0.625]])
        assert image.get_clim() == (0, 1)

    def test_names(self) -> None:
        figure = confusion_matrix_figure(COUNTS, CLASSES, "Test split")
        axes = figure.axes[0]
        assert axes.get_title() == "Test split"
        assert axes.get_xlabel() == "predicted class"
        assert axes.get_ylabel() == "true class (images)"
        assert [t.get_text() for t in axes.get_xticklabels()] == CLASSES
        assert [t.get_text() for t in axes.get_yticklabels()] == ["nv (2,000)", "df (0)", "mel (8)"]
        assert figure.get_supxlabel() == DISCLAIMER

    def test_first_true_class_is_on_top(self) -> None:
        axes = confusion_matrix_figure(COUNTS, CLASSES, "t").axes[0]
        bottom, top = axes.get_ylim()
        assert top < 0 < bottom

    def test_text_can_be_read_on_every_colour(self) -> None:
        for hits in (0, 20, 40, 60, 61, 62, 63, 64, 65, 66, 80, 100):
            counts_KK = np.array([[hits, 100 - hits], [0, 1]])
            axes = confusion_matrix_figure(counts_KK, ["a", "b"], "t").axes[0]
            (image,) = axes.images
            text = luminance(axes.texts[0].get_color())
            cell = luminance(image.cmap(image.norm(hits / 100))[:3])
            brighter, darker = max(text, cell), min(text, cell)
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5, hits  # WCAG 2.1, level AA

    def test_lightness_falls_evenly_with_the_share(self) -> None:
        colours = confusion_matrix_figure(COUNTS, CLASSES, "t").axes[0].images[0].cmap
        shares = np.linspace(0, 1, 101)
        found = np.array([lightness(colours(share)[:3]) for share in shares])
        np.testing.assert_allclose(found, found[0] + (found[-1] - found[0]) * shares, atol=1)
        assert found[0] - found[-1] > 70

    def test_names_are_not_formulas(self, tmp_path: Path) -> None:
        figure = confusion_matrix_figure(np.eye(2, dtype=int), ["$\\a", "_b$"], "$x_{$")
        save_figure(figure, tmp_path / "matrix.png")
        assert figure.axes[0].get_title() == "$x_{$"

    @pytest.mark.parametrize(
        ("counts_KK", "classes"),
        [
            (COUNTS, ["nv", "df"]),
            (COUNTS[:2], CLASSES),
            (-COUNTS, CLASSES),
            (np.zeros((0, 0)), []),
        ],
    )
    def test_refuses_what_is_no_matrix(self, counts_KK: np.ndarray, classes: list[str]) -> None:
        with pytest.raises(DataError, match=f"for {len(classes)} classes"):
            confusion_matrix_figure(counts_KK, classes, "t")


class TestTrainingCurves:
    def test_lines_are_the_history(self) -> None:
        records = history()
        panels = curves(training_curves_figure(records, best_epoch=4))
        expected = [
            {"train": "train/loss", "validation": "val/loss"},
            {
                "train, accuracy": "train/accuracy",
                "validation, accuracy": "val/accuracy",
                "train, balanced accuracy": "train/balanced_accuracy",
                "validation, balanced accuracy": "val/balanced_accuracy",
            },
            {"learning rate": "lr"},
        ]
        assert [list(panel) for panel in panels] == [list(panel) for panel in expected]
        for panel, keys in zip(panels, expected, strict=True):
            for label, key in keys.items():
                x, y = panel[label]
                np.testing.assert_array_equal(x, [1, 2, 3, 4, 5, 6])
                np.testing.assert_array_equal(y, [record[key] for record in records])

    def test_best_epoch_is_marked_in_every_panel(self) -> None:
        for axes in training_curves_figure(history(), best_epoch=4).axes:
            (mark,) = [line for line in axes.get_lines() if line.get_label() == "best epoch: 4"]
            assert list(mark.get_xdata()) == [4, 4]

    def test_no_best_epoch_no_mark(self) -> None:
        for axes in training_curves_figure(history(), best_epoch=None).axes:
            assert not [
                line for line in axes.get_lines() if str(line.get_label()).startswith("best epoch")
            ]

    def test_none_and_absent_are_gaps(self) -> None:
        records = history(4)
        records[1]["val/loss"] = None
        del records[2]["val/loss"]
        x, y = curves(training_curves_figure(records))[0]["validation"]
        np.testing.assert_array_equal(x, [1, 2, 3, 4])
        np.testing.assert_array_equal(y, [2.2, np.nan, np.nan, 0.55])

    def test_a_curve_without_values_is_left_out(self, tmp_path: Path) -> None:
        figure = training_curves_figure([{"epoch": 1, "train/loss": 1.5, "val/accuracy": None}])
        assert [list(panel) for panel in curves(figure)] == [["train"], [], []]
        save_figure(figure, tmp_path / "curves.png")

    def test_colours_are_okabe_and_itos(self) -> None:
        palette = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
        for axes in training_curves_figure(history(), best_epoch=None).axes:
            colours = [line.get_color() for line in axes.get_lines()]
            assert set(colours) <= palette
            assert len(set(colours)) == len(colours)

    def test_a_lone_value_is_visible(self) -> None:
        for axes in training_curves_figure(history(1)).axes:
            assert all(line.get_marker() == "o" for line in axes.get_lines())

    def test_footer_and_accuracy_range(self) -> None:
        figure = training_curves_figure(history())
        assert figure.get_supxlabel() == DISCLAIMER
        assert figure.axes[1].get_ylim() == (0, 1)

    def test_epochs_are_whole_numbers(self, tmp_path: Path) -> None:
        figure = training_curves_figure(history(2))
        save_figure(figure, tmp_path / "curves.png")
        for axes in figure.axes:
            ticks = axes.get_xticks()
            np.testing.assert_array_equal(ticks, np.round(ticks))

    def test_refuses_an_empty_history(self) -> None:
        with pytest.raises(DataError, match="no training history"):
            training_curves_figure([])

    def test_refuses_an_unknown_best_epoch(self) -> None:
        with pytest.raises(DataError, match=r"best_epoch=9 .* 1 to 6"):
            training_curves_figure(history(), best_epoch=9)

    @pytest.mark.parametrize(("key", "value"), [("val/loss", "0.3"), ("epoch", None)])
    def test_refuses_what_is_no_number(self, key: str, value: object) -> None:
        records = history()
        records[2][key] = value
        with pytest.raises(DataError, match=f"{key}={value!r}"):
            training_curves_figure(records)


class TestSaveFigure:
    @pytest.mark.parametrize(
        "figure",
        [
            confusion_matrix_figure(COUNTS, CLASSES, "t"),
            training_curves_figure(history(), best_epoch=4),
        ],
    )
    def test_png_of_the_stated_size(self, figure: Figure, tmp_path: Path) -> None:
        path = tmp_path / "figure.png"
        save_figure(figure, path)
        width, height = figure.get_size_inches() * DPI
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.size == (int(width), int(height))
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            darkest, brightest = image.convert("L").getextrema()
        assert (darkest, brightest) == (0, 255)
        assert list(tmp_path.iterdir()) == [path]

    def test_replaces_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "figure.png"
        path.write_bytes(b"old")
        save_figure(Figure(), path)
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_a_failure_keeps_the_old_file_and_leaves_nothing(self, tmp_path: Path) -> None:
        class Failing(Figure):
            def savefig(self, file: BytesIO, **_: object) -> None:  # type: ignore[override]
                file.write(b"half")
                raise OSError("disk full")

        path = tmp_path / "figure.png"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="disk full"):
            save_figure(Failing(), path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_settings_of_matplotlib_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(training_curves_figure(history()), tmp_path / "a.png")
    save_figure(confusion_matrix_figure(COUNTS, CLASSES, "t"), tmp_path / "b.png")
    assert dict(mpl.rcParams) == before
