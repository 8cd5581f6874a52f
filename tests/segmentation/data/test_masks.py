import numpy as np
import pytest
from PIL import Image
from segmentation_data import save, save_palette, save_png16

from lightning_recall.segmentation.data.masks import (
    IGNORED_PIXEL,
    MaskError,
    MaskFormat,
    color_code,
    read_colors,
    read_first_channel,
    read_ids,
)

IDS = np.array([[0, 1, 2], [255, 7, 3]])


def test_encoding_equals_a_loop():
    rng = np.random.default_rng(0)
    class_of = {3: 0, 40: 1, 300: 2, 65535: IGNORED_PIXEL, 7: IGNORED_PIXEL}
    values = rng.choice(list(class_of), (5, 6))
    expected = [[class_of[int(value)] for value in row] for row in values]
    assert MaskFormat(class_of).encode(values).tolist() == expected
    colors = {color_code(color): label for color, label in (((0, 0, 0), 1), ((255, 255, 255), 0), ((1, 2, 3), 255))}
    values = rng.choice(list(colors), (5, 6))
    expected = [[colors[int(value)] for value in row] for row in values]
    assert MaskFormat(colors, read_colors).encode(values).tolist() == expected


@pytest.mark.parametrize("kind", ["L", "P", "16", "rgb", "tiff", "bit"])
def test_ids_of_each_kind_of_file(tmp_path, kind):
    ids = IDS if kind != "bit" else IDS % 2
    path = tmp_path / ("mask.tif" if kind == "tiff" else "mask.png")
    if kind == "P":
        save_palette(ids, path, np.random.default_rng(0).integers(0, 256, (256, 3)))
    elif kind == "bit":
        Image.fromarray(ids.astype(bool)).save(path)
    elif kind == "rgb":
        save(np.repeat(np.uint8(ids)[..., None], 3, 2), path)
    else:
        save(ids.astype(np.uint16 if kind == "16" else np.uint8), path)
    assert read_ids(path).tolist() == ids.tolist()


def test_ids_above_255(tmp_path):
    save(np.array([[256, 40000]], dtype=np.uint16), tmp_path / "mask.png")
    assert read_ids(tmp_path / "mask.png").tolist() == [[256, 40000]]


def test_colors_of_rgb_and_palette(tmp_path):
    colors = np.array([(0, 0, 0), (10, 20, 30), (255, 0, 1), (4, 5, 6)], dtype=np.uint8)
    ids = IDS % 4
    save(colors[ids], tmp_path / "rgb.png")
    save_palette(ids, tmp_path / "palette.png", colors)
    expected = [[int(r) * 65536 + int(g) * 256 + int(b) for r, g, b in row] for row in colors[ids]]
    assert read_colors(tmp_path / "rgb.png").tolist() == expected
    assert read_colors(tmp_path / "palette.png").tolist() == expected


def test_sixteen_bits_in_three_channels(tmp_path):
    """The ids are in the low bytes, which Pillow drops."""
    channels = np.stack([IDS, IDS * 100 + 1, np.zeros_like(IDS)], 2).astype(np.uint16)
    save_png16(channels, tmp_path / "mask.png")
    assert read_first_channel(tmp_path / "mask.png").tolist() == IDS.tolist()
    with Image.open(tmp_path / "mask.png") as file:
        assert np.asarray(file)[..., 0].max() == 0  # what Pillow reads
    channels[..., 0] = [[3, 260, 65535], [0, 256, 515]]
    save_png16(channels, tmp_path / "large.png")
    assert read_first_channel(tmp_path / "large.png").tolist() == channels[..., 0].tolist()


def test_first_channel_of_eight_bits(tmp_path):
    save(np.uint8(np.stack([IDS, IDS * 0 + 9, IDS * 0], 2)), tmp_path / "rgb.png")
    save(np.uint8(IDS), tmp_path / "grey.png")
    for name in ("rgb.png", "grey.png"):
        assert read_first_channel(tmp_path / name).tolist() == IDS.tolist()


def test_unknown_id_names_the_file_the_value_the_pixels_and_the_classes():
    with pytest.raises(MaskError) as error:
        MaskFormat({0: 0, 1: 1, 255: 255}, names=("sky", "road")).encode(np.array([[0, 9], [9, 255]]), "a/b.png")
    assert str(error.value) == (
        "the mask a/b.png has the id 9 in 2 pixels. Known are 0 'sky', 1 'road', 255 'ignored'. Add the id to the "
        "classes, or to the ignored ones."
    )


def test_unknown_values_beyond_the_table():
    for value in (70000, 65536):
        with pytest.raises(MaskError, match=f"has the id {value} in 1 pixel"):
            MaskFormat({0: 0}).encode(np.array([[0, value]]))


def test_unknown_color():
    mask_format = MaskFormat({color_code((255, 0, 0)): 0}, read_colors, ("red",))
    values = np.full((2, 3), color_code((255, 0, 0)))
    values[0, 0] = color_code((254, 1, 0))
    with pytest.raises(MaskError, match=r"the colour \(254, 1, 0\) in 1 pixel. Known are \(255, 0, 0\) 'red'"):
        mask_format.encode(values)


def test_many_unknown_colors_are_explained(tmp_path):
    """A mask that was a JPEG once."""
    mask = np.zeros((32, 32, 3), dtype=np.uint8)
    mask[8:20, 8:24] = (200, 30, 90)
    save(mask, tmp_path / "mask.jpg")
    save(np.asarray(Image.open(tmp_path / "mask.jpg")), tmp_path / "mask.png")
    mask_format = MaskFormat({0: 0, color_code((200, 30, 90)): 1}, read_colors, ("none", "spot"))
    with pytest.raises(MaskError, match="come from lossy compression"):
        mask_format(tmp_path / "mask.png")


def test_jpeg_and_colors_for_ids_are_errors(tmp_path):
    save(np.zeros((8, 8), dtype=np.uint8), tmp_path / "mask.jpg")
    for read in (read_ids, read_colors, read_first_channel):
        with pytest.raises(MaskError, match=r"mask.jpg is a JPEG file, which changes"):
            read(tmp_path / "mask.jpg")
    save(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), tmp_path / "mask.png")
    with pytest.raises(MaskError, match=r"has colours \(RGB\), but ids are expected"):
        read_ids(tmp_path / "mask.png")


def test_ids_in_floating_point_and_in_deep_rgb_files(tmp_path):
    Image.fromarray(IDS.astype(np.float32)).save(tmp_path / "whole.tif")
    assert read_ids(tmp_path / "whole.tif").tolist() == IDS.tolist()
    Image.fromarray(np.float32(IDS / 2)).save(tmp_path / "half.tif")
    with pytest.raises(MaskError, match=r"half.tif has fractions, but ids are expected"):
        read_ids(tmp_path / "half.tif")
    save_png16(np.repeat(IDS[..., None], 3, 2), tmp_path / "deep.png")
    with pytest.raises(MaskError, match=r"deep.png is RGB with 16 bits per channel: save the ids in one channel"):
        read_ids(tmp_path / "deep.png")
