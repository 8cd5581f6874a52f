"""Draws street-like scenes with their masks: a long-tailed data set that needs no download."""

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 96
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE, SIGN = range(9)
CLASSES = {
    "sky": (70, 130, 180),
    "building": (70, 70, 70),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "tree": (107, 142, 35),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
    "pole": (153, 153, 153),
    "sign": (220, 220, 0),
}
"""name -> colour in pictures of masks, as in Cityscapes, in the order of the ids"""
rows, columns = np.ogrid[:HEIGHT, :WIDTH]  # (H, 1), (1, W)
WALLS = np.array([(150, 110, 90), (120, 120, 125), (190, 170, 140), (110, 80, 75), (170, 165, 160), (95, 100, 115)])
PAINTS = np.array([(200, 30, 30), (30, 60, 160), (225, 225, 225), (35, 35, 40), (130, 135, 140), (20, 90, 50)])
CLOTHES = np.array([(40, 40, 60), (150, 40, 40), (60, 90, 140), (170, 160, 150), (50, 80, 50), (30, 30, 30)])
SIGNS = np.array([(200, 40, 40), (40, 70, 180), (220, 190, 40), (210, 210, 215)])
NOISE = 9.0  # standard deviation of the noise of each pixel, of 255


class Scene:
    """A street under construction: colours (H, W, 3) and classes (H, W).

    Args:
        rng: draws everything in the scene.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.colors = np.zeros((HEIGHT, WIDTH, 3))
        self.mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        self.horizon = int(rng.integers(24, 33))
        self.center = int(rng.integers(34, 62))  # column where the road vanishes

    def paint(self, where: NDArray[np.bool_], label: int, color: NDArray[np.float64], texture: float = 6.0) -> None:
        """Gives pixels a class and a colour, with texture of this standard deviation."""
        self.mask[where] = label
        self.colors[where] = color + self.rng.normal(0, texture, (int(where.sum()), 1))

    def box(self, top: float, bottom: float, left: float, right: float) -> NDArray[np.bool_]:
        """Pixels (H, W) of a rectangle, the ends excluded."""
        where: NDArray[np.bool_] = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return where

    def ellipse(self, row: float, column: float, height: float, width: float) -> NDArray[np.bool_]:
        """Pixels (H, W) of an ellipse with this centre and these radii."""
        where: NDArray[np.bool_] = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
        return where

    def pick(self, colors: NDArray[np.integer], spread: float = 12.0) -> NDArray[np.float64]:
        """One of some colours (K, 3), varied."""
        return np.asarray(self.rng.choice(colors) + self.rng.normal(0, spread, 3), dtype=np.float64)

    def blotches(self, cell: int, strength: float) -> NDArray[np.float64]:
        """Noise (H, W) in cells of this many pixels."""
        coarse = self.rng.normal(0, strength, (-(-HEIGHT // cell), -(-WIDTH // cell)))
        return np.asarray(np.kron(coarse, np.ones((cell, cell)))[:HEIGHT, :WIDTH], dtype=np.float64)

    def scale_at(self, row: float) -> float:
        """Size of objects that stand at this row, 0 at the horizon, 1 at the lower edge."""
        return (row - self.horizon) / (HEIGHT - self.horizon)

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (3, H, W) and mask (H, W)."""
        self.draw_sky()
        self.draw_buildings()
        self.draw_ground()
        draws = [self.draw_tree] * int(self.rng.integers(1, 5)) + [self.draw_pole] * int(self.rng.integers(1, 4))
        draws += [self.draw_car] * int(self.rng.integers(0, 4)) + [self.draw_person] * int(self.rng.integers(0, 4))
        depths = np.sort(self.rng.uniform(0.12, 0.9, len(draws)))  # from far to near
        for index, depth in zip(self.rng.permutation(len(draws)), depths, strict=True):
            draws[index](self.horizon + depth * (HEIGHT - self.horizon))
        light = self.rng.uniform(0.55, 1.15) * (1 + self.rng.normal(0, 0.04, 3))
        soft = (2 * self.colors + np.roll(self.colors, 1, 1) + np.roll(self.colors, 1, 0)) / 4
        image = soft * light + self.rng.normal(0, NOISE, self.colors.shape)
        return image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1), self.mask

    def draw_sky(self) -> None:
        """A gradient with clouds, or an overcast sky."""
        zenith = self.pick(np.array([(110, 150, 210), (190, 195, 200), (150, 165, 190)]))
        gradient = (rows / HEIGHT)[..., None] * 60
        clouds = self.blotches(8, 10) + self.blotches(4, 5)
        self.colors[:] = zenith + gradient + clouds[..., None]
        self.mask[:] = SKY

    def draw_buildings(self) -> None:
        """Rows of houses on both sides, lower towards the vanishing point, with windows."""
        for side in (-1, 1):
            column = float(self.center + side * self.rng.integers(3, 12))
            while -10 < column < WIDTH + 10:
                width = self.rng.uniform(8, 22)
                distance = abs(column + side * width / 2 - self.center) / WIDTH
                top = self.horizon - 5 - 55 * distance * self.rng.uniform(0.4, 1.1)
                left, right = sorted((column, column + side * width))
                wall = self.pick(WALLS)
                where = self.box(top, self.horizon + 3 + 12 * distance, left, right)
                if self.rng.random() < 0.9:
                    self.paint(where, BUILDING, wall)
                    step = int(self.rng.integers(4, 7))
                    windows = ((rows - int(top)) % step > step // 2) & ((columns - int(left)) % step > step // 2)
                    self.paint(where & windows, BUILDING, wall * self.rng.uniform(0.4, 1.3), texture=14)
                column += side * width

    def draw_ground(self) -> None:
        """Pavement, and a road with lane markings that narrows towards the horizon."""
        below = rows >= self.horizon + 1
        scale = (rows - self.horizon) / (HEIGHT - self.horizon)
        half = 3 + self.rng.uniform(34, 52) * scale
        offset = np.abs(columns - self.center)
        grey = self.rng.uniform(75, 125)
        ground = below & (self.mask != BUILDING) | (below & (offset < half + 4 + 14 * scale))
        self.paint(ground, PAVEMENT, np.full(3, grey + self.rng.uniform(5, 45)) + self.rng.normal(0, 6, 3), 9)
        road = below & (offset < half)
        self.paint(road, ROAD, np.full(3, grey) + self.rng.normal(0, 4, 3), 7)
        dashes = road & (offset < 0.5 + 1.5 * scale) & (rows % 8 < 4)
        self.paint(dashes, ROAD, np.full(3, grey + 90), 10)
        self.half = half[:, 0]  # (H,) half the width of the road at each row
        self.colors += np.where(below, self.blotches(8, 6), 0)[..., None]

    def beside_road(self, row: float) -> float:
        """A column on one of the two pavements."""
        side = self.rng.choice((-1, 1))
        half = self.half[min(int(row), HEIGHT - 1)]
        return float(self.center + side * (half + self.rng.uniform(1, 3 + 14 * self.scale_at(row))))

    def draw_tree(self, row: float) -> None:
        """A trunk with a crown of leaves."""
        scale, column = 0.35 + self.scale_at(row), self.beside_road(row)
        green = self.pick(np.array([(60, 90, 40), (90, 110, 50), (120, 100, 50), (45, 70, 45)]))
        self.paint(self.box(row - 14 * scale, row, column - scale, column + scale), TREE, green * 0.6, 10)
        for _ in range(3):
            up, aside = self.rng.uniform(12, 22) * scale, self.rng.normal(0, 3) * scale
            crown = self.ellipse(row - up, column + aside, self.rng.uniform(5, 9) * scale, 6 * scale)
            self.paint(crown, TREE, green, 22)

    def draw_pole(self, row: float) -> None:
        """A thin post, some with a sign."""
        scale, column = 0.4 + self.scale_at(row), int(self.beside_road(row))
        top = row - self.rng.uniform(18, 30) * scale
        self.paint(self.box(top, row, column, column + 1 + (scale > 1)), POLE, self.pick(WALLS[[1, 4, 5]]), 8)
        if self.rng.random() < 0.6:
            size = 1.2 + 1.5 * scale
            shape = self.ellipse if self.rng.random() < 0.5 else lambda r, c, h, w: self.box(r - h, r + h, c - w, c + w)
            self.paint(shape(top + size, column + 0.5, size, size), SIGN, self.pick(SIGNS), 10)

    def draw_car(self, row: float) -> None:
        """A car from behind, on the road: body, windows and tyres."""
        scale = 0.25 + self.scale_at(row)
        half = self.half[min(int(row), HEIGHT - 1)]
        column, size, color = self.center + self.rng.uniform(-0.8, 0.8) * half, 11 * scale, self.pick(PAINTS)
        self.paint(self.box(row - 0.8 * size, row - 0.15 * size, column - size, column + size), CAR, color)
        self.paint(self.box(row - 1.3 * size, row - 0.8 * size, column - 0.75 * size, column + 0.75 * size), CAR, color)
        glass = self.box(row - 1.2 * size, row - 0.8 * size, column - 0.6 * size, column + 0.6 * size)
        self.paint(glass, CAR, np.array([50.0, 60, 70]), 12)
        for side in (-1, 1):
            tyre = self.box(
                row - 0.3 * size, row, column + (0.65 * side - 0.2) * size, column + (0.65 * side + 0.2) * size
            )
            self.paint(tyre, CAR, np.full(3, 25.0), 5)

    def draw_person(self, row: float) -> None:
        """A person on the pavement: head, coat and legs."""
        scale = 0.4 + self.scale_at(row)
        column, height = self.beside_road(row), 13 * scale
        coat, legs = self.pick(CLOTHES), self.pick(CLOTHES)
        self.paint(self.box(row - 0.45 * height, row, column - scale, column + scale), PERSON, legs)
        self.paint(
            self.box(row - 0.85 * height, row - 0.4 * height, column - 1.6 * scale, column + 1.6 * scale), PERSON, coat
        )
        skin = np.array([190.0, 150, 125]) * self.rng.uniform(0.5, 1.1)
        self.paint(self.ellipse(row - 0.95 * height, column, 1.3 * scale, 1.1 * scale), PERSON, skin)


def draw_scenes(count: int, seed: int, part: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws scenes.

    Args:
        count: number of scenes N.
        seed: random seed.
        part: number of the split, so that each split has scenes of its own.

    Returns:
        Images (N, 3, 64, 96) uint8 and masks (N, 64, 96) uint8.
    """
    scenes = [Scene(np.random.default_rng((seed, part, index))).draw() for index in range(count)]
    return np.stack([image for image, _ in scenes]), np.stack([mask for _, mask in scenes])
