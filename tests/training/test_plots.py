"""The pictures of a comparison: drawn for whatever was measured, whole or not at all."""

from pathlib import Path

import pytest

from training.plots import Curve, plot_losses


@pytest.mark.parametrize("num_curves", [1, 3, 30])
@pytest.mark.parametrize("num_points", [1, 5])
def test_a_picture_is_drawn_of_any_number_of_curves(tmp_path: Path, num_curves: int, num_points: int) -> None:
    curves = [
        Curve(
            name=f"model {index // 2}",
            costs=[10.0 ** (3 + point) for point in range(num_points)],
            losses=[4.0 / (1 + point) + 0.1 * index for point in range(num_points)],
        )
        for index in range(num_curves)
    ]
    plot_losses(curves, "tokens", tmp_path / "loss.png")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
