import pytest

from lightning_recall.data import ImageTransforms


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 300}, {"min_scale": 0.0}, {"min_scale": 1.1}])
def test_values_out_of_range_are_rejected(settings):
    with pytest.raises(ValueError, match="1 <= size <= resize and 0 < min_scale <= 1"):
        ImageTransforms(**settings)


@pytest.mark.parametrize("settings", [{"mode": "rgb"}, {"on_error": "Raise"}])
def test_unknown_options_are_rejected(settings):
    with pytest.raises(ValueError, match='mode must be "RGB" or "L", on_error "skip" or "raise"'):
        ImageTransforms(**settings)
