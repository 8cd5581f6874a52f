"""A small convnet for small images: trains on the Glyphs dataset in one minute on two CPU cores."""

from torch import Tensor, nn

from lightning_recall.constructor_arguments import record_arguments


@record_arguments
class SmallConvNet(nn.Module):
    """Three 3 x 3 convolutions after PixelUnshuffle(2); the last feature map is flattened, not pooled.

    Flattening keeps spatial positions, which distinguish the characters of the Glyphs dataset.

    Args:
        in_channels: number of image channels: 1 for greyscale, 3 for colour.
        image_size: height and width in pixels, a multiple of 8.
        widths: channels of the three convolutions.

    Shapes: images (B, in_channels, image_size, image_size), normalised -> (B, num_features).

    Raises:
        ValueError: for an image size that is not a multiple of 8, and for images with a different size or number
            of channels.
    """

    def __init__(
        self, in_channels: int = 1, image_size: int = 32, widths: tuple[int, int, int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8 pixels, got {image_size}.")
        narrow, middle, wide = widths
        self.in_channels = in_channels
        self.image_size = image_size
        self.num_features = wide * (image_size // 8) ** 2
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            *(nn.Conv2d(4 * in_channels, narrow, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(narrow, middle, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(middle, wide, 3, padding=1), nn.ReLU()),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, num_features) of images (B, C, H, W)."""
        expected = (self.in_channels, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"SmallConvNet expects images of shape (B, {str(expected)[1:]}, got {tuple(images.shape)}."
            )
        features: Tensor = self.layers(images)
        return features
