import json

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from resnet_jax.analysis.curves import plot_errors

RECORDS = [
    {"step": 10, "train_error": 80.0, "train_loss": 2.0},
    {"step": 20, "train_error": 60.0, "test_error": 70.0},
    {"step": 30, "train_error": 40.0, "validation_error": 55.0},
    {"step": 40, "test_error": 50.0},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written."""
    written = []
    savefig = Figure.savefig

    def record(figure, *args, **kwargs):
        written.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return written


def plot(tmp_path, text):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    if text is not None:
        metrics.write_text(text)
    plot_errors(metrics, picture, "ResNet-20")
    return picture


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_png_with_something_drawn_on_it_is_written(tmp_path):
    pixels = matplotlib.image.imread(plot(tmp_path, json_lines(RECORDS)), format="png")
    assert pixels.ndim == 3
    red = (pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.4) & (pixels[..., 2] < 0.4)
    assert red.sum() > 100


def test_each_error_is_a_line_of_its_own_steps_and_the_loss_is_none(tmp_path, figures):
    plot(tmp_path, json_lines(RECORDS))
    [axes] = figures[0].axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert set(lines) == {"training", "test", "validation"}
    np.testing.assert_array_equal(lines["training"], [(10, 80), (20, 60), (30, 40)])
    np.testing.assert_array_equal(lines["test"], [(20, 70), (40, 50)])
    np.testing.assert_array_equal(lines["validation"], [(30, 55)])
    assert axes.get_title() == "ResNet-20"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "error (%)")
    assert axes.get_ylim()[0] == 0


def test_training_is_thin_and_dashed_and_test_bold_as_in_the_papers_figures(tmp_path, figures):
    plot(tmp_path, json_lines(RECORDS))
    lines = {line.get_label(): line for line in figures[0].axes[0].lines}
    assert lines["training"].get_linestyle() == "--"
    assert lines["test"].get_linestyle() == lines["validation"].get_linestyle() == "-"
    assert lines["training"].get_linewidth() < 1 < lines["test"].get_linewidth()


def test_record_torn_by_a_kill_is_left_out(tmp_path, figures):
    plot(tmp_path, json_lines(RECORDS) + '{"step": 50, "test_er')
    lines = {line.get_label(): line.get_xydata() for line in figures[0].axes[0].lines}
    np.testing.assert_array_equal(lines["test"], [(20, 70), (40, 50)])


@pytest.mark.parametrize(
    "text", ["", json_lines([{"step": 1, "train_loss": 2.3}]), None], ids=["empty", "no-errors", "absent"]
)
def test_metrics_without_errors_give_empty_axes(tmp_path, figures, text):
    assert plot(tmp_path, text).stat().st_size > 0
    [axes] = figures[0].axes
    assert not axes.lines
