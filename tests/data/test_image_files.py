import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.data import ImageFiles, ImageTransforms, read_image

RED = np.zeros((20, 30, 3), np.uint8) + np.array([200, 40, 20], np.uint8)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "tif"), ("RGB", "webp")]
)
def test_every_colour_mode_keeps_the_colours(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RED).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 40, 20])).abs().max() < 9  # CMYK rounds


@pytest.mark.parametrize(("mode", "grey"), [("L", 120), ("LA", 120), ("1", 255), ("I;16", 120)])
def test_grey_images_get_three_channels(tmp_path, mode, grey):
    values = np.full((20, 30), grey * 257 if mode == "I;16" else grey, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values)
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "image.png")
    assert (read_image(tmp_path / "image.png") == grey).all()
    assert read_image(tmp_path / "image.png", "L").shape == (1, 20, 30)


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_16_bits_are_scaled_by_a_constant(tmp_path, suffix, kind):
    for value, expected in ((200, 0), (257, 1), (65535, 255)):
        Image.fromarray(np.full((20, 30), value, kind)).save(tmp_path / f"image.{suffix}")
        assert (read_image(tmp_path / f"image.{suffix}", "L") == expected).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_rejected(tmp_path, kind):
    Image.fromarray(np.ones((20, 30), kind)).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match="32-bit images have no defined white level: save the image with 8 or 16 bits"):
        read_image(tmp_path / "image.tif")


def test_transparent_pixels_are_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255  # opaque black above, transparent below
    Image.fromarray(image).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[:, :, 0].tolist() == [[0, 0, 255, 255]] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_their_exif_orientation(tmp_path, orientation):
    """The inverse of Pillow's table of EXIF orientations."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose that stores an upright image so
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "image.png", "L")[0], np.asarray(upright))


@pytest.mark.parametrize(
    ("tags", "upright"),
    [
        ([(0x0112, 3, struct.pack("<HH", 6, 0)), (0x0100, 2, b"7\0\0\0")], True),  # text as width
        ([(0x0112, 2, b"6\0\0\0")], False),  # text as orientation
    ],
)
def test_images_with_exif_tags_of_a_wrong_type_are_read(tmp_path, tags, upright):
    entries = b"".join(struct.pack("<HHI", tag, kind, len(value) // 4) + value for tag, kind, value in sorted(tags))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    stored = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    stored.save(tmp_path / "image.png", exif=exif)
    expected = stored.transpose(Image.Transpose.ROTATE_270) if upright else stored
    assert np.array_equal(read_image(tmp_path / "image.png", "L")[0], np.asarray(expected))


def test_a_box_is_cropped(tmp_path):
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", "L", (1.2, 2, 3, 4)).tolist() == [[[13, 14], [19, 20]]]


def files(folder, count=6, **kwargs):
    """Images of one colour each, its number; three classes of two."""
    for i in range(count):
        Image.fromarray(np.full((50, 40, 3), i, np.uint8)).save(folder / f"{i}.png")
    return ImageFiles(folder, [f"{i}.png" for i in range(count)], [0, 0, 1, 1, 2, 2], **kwargs)


def test_items_are_cropped(tmp_path):
    data = files(tmp_path, transforms=ImageTransforms(size=16, resize=20), super_labels=[5, 5, 5, 5, 6, 6])
    image, label = data[3]
    assert (image.shape, image.dtype, image.unique().tolist(), int(label)) == ((3, 16, 16), torch.uint8, [3], 1)
    chosen = data.select(np.array([3, 4]), training=True)
    assert chosen.training
    assert (chosen.labels.tolist(), chosen.super_labels.tolist(), len(chosen)) == ([1, 2], [5, 6], 2)
    assert chosen[0][0].unique().tolist() == [3]


def test_training_crops_and_flips_at_random_and_evaluation_does_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    data = ImageFiles(tmp_path, ["0.png"], [0], transforms=ImageTransforms(size=32, resize=60))
    assert torch.equal(data[0][0], data[0][0])
    assert np.array_equal(data[0][0].permute(1, 2, 0), noise[14:46, 14:46])  # the centre, not resized
    training = data.select([0], training=True)
    assert not torch.equal(training[0][0], training[0][0])
    same = ImageFiles(
        tmp_path, ["0.png"], [0], transforms=ImageTransforms(60, 60, min_scale=1, flip=False), training=True
    )
    assert np.array_equal(same[0][0].permute(1, 2, 0), noise)


class Half(nn.Module):
    def forward(self, image):
        return image // 2


def test_user_transforms_replace_the_defaults(tmp_path):
    data = files(tmp_path, transforms=ImageTransforms(train_transform=Half(), eval_transform=nn.Identity()))
    assert data[4][0].unique().tolist() == [4]
    assert data.select([4], training=True)[0][0].unique().tolist() == [2]


@pytest.fixture
def broken(tmp_path):
    """Six files: 2 is truncated, 4 is not an image, 5 is missing."""
    data = files(tmp_path, transforms=ImageTransforms(size=8, resize=8))
    noise = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "2.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_text("<html>404</html>")
    (tmp_path / "5.png").unlink()
    return data


def test_training_replaces_an_unreadable_image_by_another_of_its_class(broken):
    training = broken.select(np.arange(6), training=True)
    with pytest.warns(UserWarning, match=r"Cannot read the image .*2.png: .*; using another image of its class"):
        image, label = training[2]
    assert (image.unique().tolist(), int(label)) == ([3], 1)
    assert training.unreadable.tolist() == [False, False, True, False, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training[2]  # one warning per file
    with (
        pytest.warns(UserWarning, match=r"[45]\.png"),
        pytest.raises(ValueError, match=r"any image of the class of .*4\.png"),
    ):
        training[4]


@pytest.mark.filterwarnings("ignore:Cannot read the image")
def test_the_next_image_of_the_class_is_taken_and_after_the_last_the_first(broken):
    training = ImageFiles(broken.root, broken.paths, [0, 1, 0, 0, 0, 1], transforms=broken.transforms, training=True)
    assert training[2][0].unique().tolist() == [3]
    assert training[4][0].unique().tolist() == [0]
    assert training[5][0].unique().tolist() == [1]


def test_evaluation_ignores_unreadable_images(broken):
    with pytest.warns(UserWarning, match=r"4.png: .*; ignoring it"):
        image, label = broken[4]
    assert image.shape == (3, 8, 8)
    assert int(label) == IGNORED_LABEL == -100


@pytest.mark.filterwarnings("ignore:Cannot read the image")
@pytest.mark.parametrize("transforms", [ImageTransforms(eval_transform=Half()), ImageTransforms(longest_side=20)])
@pytest.mark.parametrize("indices", [[0, 1, 4], [2, 3, 4], [4, 5]])
def test_placeholders_of_unreadable_images_have_the_size_of_the_others(broken, transforms, indices):
    data = ImageFiles(broken.root, broken.paths, broken.labels, transforms=transforms).select(indices)
    ((images, labels),) = DataLoader(data, batch_size=3)
    assert labels.tolist() == [IGNORED_LABEL if index in (2, 4, 5) else index // 2 for index in indices]
    assert (images[labels == IGNORED_LABEL] == 0).all()


@pytest.mark.filterwarnings("ignore:Cannot read the image")
def test_workers_mark_unreadable_images(broken):
    labels = torch.cat([labels for _, labels in DataLoader(broken, batch_size=2, num_workers=2)])
    assert labels.tolist() == [0, 0, IGNORED_LABEL, 1, IGNORED_LABEL, IGNORED_LABEL]
    assert broken.unreadable.tolist() == [False, False, True, False, True, True]


def test_errors_can_stop_the_run(broken):
    strict = ImageFiles(broken.root, broken.paths, broken.labels, transforms=ImageTransforms(on_error="raise"))
    with pytest.raises(ValueError, match=r"Cannot read the image .*2.png"):
        strict[2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1.5], r"labels must be integers .*, got float64 \(2,\), with first value"),
        ([0, float("nan")], "labels must be integers"),
        (["0", "1"], r"labels must be integers .*, got <U1 \(2,\), with first value .*'0'"),
        ([0, None], "labels must be integers"),
        ([True, False], "labels must be integers"),
        ([0, 1, 2], r"labels must be of shape \(2,\), one for each image, got \(3,\)"),
        ([[0, 1], [0, 1]], r"labels must be of shape \(2,\)"),
        (np.array([0, 2**63], np.uint64), r"labels must be below 2\*\*63, got 9223372036854775808"),
    ],
)
def test_labels_that_are_not_integers_are_rejected(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ImageFiles(tmp_path, ["a.png", "b.png"], labels)


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64, list, tuple, torch.tensor]
)
def test_labels_of_any_integer_type(kind, tmp_path):
    values = [7, 3]
    labels = np.array(values, kind) if isinstance(kind, type) and issubclass(kind, np.integer) else kind(values)
    data = ImageFiles(tmp_path, ["a.png", "b.png"], labels)
    assert (data.labels.tolist(), data.labels.dtype) == (values, np.int64)


def photograph(width, height):
    """Smooth structure with fine detail, (height, width, 3) uint8, whose top left corner is bright."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = np.stack([np.sin(40 * x + 3 * y), np.cos(25 * y), np.sin(30 * (x + y))], 2) * 50 + 120
    waves[: height // 4, : width // 4] += 60
    return (waves + np.random.default_rng(0).normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(160, 120), (375, 500), (1200, 900)])
@pytest.mark.parametrize("kind", ["jpg", "rotated jpg", "cmyk jpg", "palette png", "16-bit png"])
def test_photographs_of_all_kinds_are_resized_as_pillow_does(size, kind, tmp_path):
    pixels = photograph(*size)
    path = tmp_path / f"photo.{kind.split()[-1]}"
    image = expected = Image.fromarray(pixels)
    if kind == "rotated jpg":
        exif = Image.Exif()
        exif[274] = 6
        image.rotate(90, expand=True).save(path, quality=98, subsampling=0, exif=exif)
    elif kind == "16-bit png":
        grey = image.convert("L")
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
        expected = grey.convert("RGB")
    elif kind == "palette png":
        image = image.quantize(256)
        image.save(path)
        expected = image.convert("RGB")
    else:
        image.convert("CMYK" if "cmyk" in kind else "RGB").save(path, quality=98, subsampling=0)
    ours = ImageFiles(tmp_path, [path.name], [0], transforms=ImageTransforms(size=112))[0][0]
    scale = 128 / min(size)
    resized = expected.resize([int(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - 112) / 2) for side in resized.size)
    reference = np.asarray(resized.crop((left, top, left + 112, top + 112))).astype(int)
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - reference)
    assert ours.shape == (3, 112, 112)
    assert difference.mean() < 2.5  # JPEG; one pixel to the side gives more than 5
    shifted = np.abs(np.roll(reference, 1, 1) - reference).mean()
    assert difference.mean() < shifted / 2
