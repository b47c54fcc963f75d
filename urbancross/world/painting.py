"""Features to the pixels of a scene: looks, shadows, texture, haze, and the sensor's blur and noise."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFilter
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from urbancross.world.shapes import RGB, Feature, Style, scale

# Relative brightness noise per look: of a pixel, of a few metres, of a few tens of metres.
TEXTURE: dict[str, tuple[float, float, float]] = {
    "grass": (0.05, 0.05, 0.06),
    "lawn": (0.05, 0.05, 0.05),
    "meadow": (0.06, 0.08, 0.10),
    "forest": (0.12, 0.10, 0.08),
    "crown": (0.12, 0.06, 0.05),
    "crop": (0.05, 0.04, 0.05),
    "crop_green": (0.06, 0.05, 0.05),
    "stubble": (0.05, 0.04, 0.06),
    "soil": (0.06, 0.06, 0.07),
    "water": (0.02, 0.03, 0.03),
    "sand": (0.03, 0.03, 0.04),
    "gravel": (0.09, 0.05, 0.04),
    "fairway": (0.03, 0.02, 0.03),
}
SMOOTH = (0.03, 0.02, 0.02)


class Canvas:
    """An image painted in metres. Corners fall into the pixel that holds them, and outlines are painted too."""

    def __init__(self, mode: str, size_px: int, px_per_m: float, value: RGB | int) -> None:
        self.image, self.px_per_m = Image.new(mode, (size_px, size_px), value), px_per_m
        self.pen = ImageDraw.Draw(self.image)

    def fill(self, rings: Sequence[np.ndarray], value: RGB | int) -> None:
        """Paint a polygon: its outline `[N, 2]`, then those of its holes, which stay as they are."""
        outer = rings[0] * self.px_per_m
        if len(rings) == 1:
            self.pen.polygon(outer.ravel().tolist(), fill=value)
            return
        corner = np.floor(outer.min(axis=0)).astype(int) - 1
        width, height = (np.ceil(outer.max(axis=0)).astype(int) - corner + 2).tolist()
        mask = Image.new("1", (width, height))
        for k, ring in enumerate(rings):
            inside = ring * self.px_per_m - corner
            ImageDraw.Draw(mask).polygon(inside.ravel().tolist(), fill=int(k == 0))
        self.image.paste(value, (int(corner[0]), int(corner[1])), mask)


def outlines(shapes: Sequence[BaseGeometry]) -> list[list[np.ndarray]]:
    """The rings `[N, 2]` of every polygon, the outer one first."""
    rings, owner = shapely.get_rings(np.array(shapes, dtype=object), return_index=True)
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    ends = np.cumsum(np.bincount(ring_of)).tolist()
    found: list[list[np.ndarray]] = [[] for _ in shapes]
    for k, start, end in zip(owner.tolist(), [0, *ends], ends, strict=False):
        found[k].append(points[start:end])
    return found


def throw(shadow: Canvas, f: Feature, rings: Sequence[np.ndarray], style: Style) -> None:
    """Darken where the shadow of `f` ends, and for what is tall and not a round crown, all on the way there."""
    away = np.multiply(style.shadow, f.height_m)
    shadow.fill([rings[0] + away], 255)
    if f.height_m > 5 and f.look != "crown":
        for ring in rings:
            for start, end in pairwise(ring):
                shadow.fill([np.array([start, end, end + away, start + away])], 255)


def noise(size: int, grain: float, rng: np.random.Generator) -> np.ndarray:
    """`[size, size]` float32 with unit deviation whose lumps are about `grain` pixels wide."""
    few = int(size / grain) + 2
    field = Image.fromarray(rng.standard_normal((few, few), dtype=np.float32))
    field = field.resize((size, size), Image.Resampling.BICUBIC) if few < size else field.crop((0, 0, size, size))
    values = np.asarray(field)
    return values / values.std()


def draw(features: list[Feature], style: Style, scene_px: int, gsd_m: float, rng: np.random.Generator) -> np.ndarray:
    """Paint a scene, `[scene_px, scene_px, 3]` uint8, at twice its size; reduce it, texture it, pass it to a sensor."""
    looks = {look: k for k, look in enumerate(style.palette)}
    canvas = Canvas("RGB", 2 * scene_px, 2 / gsd_m, style.palette["grass"])
    shadow = Canvas("L", 2 * scene_px, 2 / gsd_m, 0)
    look_map = Canvas("L", scene_px, 1 / gsd_m, looks["grass"])
    seen = sorted((f for f in features if isinstance(f.shape, Polygon)), key=lambda f: f.height_m)  # flat ones as made
    rings = outlines([f.shape for f in seen])
    flat = sum(f.height_m == 0 for f in seen)
    for k, f in enumerate(seen):
        if k == flat:  # what is flat is painted: darken it before anything stands on it
            for tall, outline in zip(seen[flat:], rings[flat:], strict=True):
                throw(shadow, tall, outline, style)
            dark = canvas.image.point(lambda value: value * style.shade)
            canvas.image.paste(dark, (0, 0), shadow.image)
        canvas.fill(rings[k], f.rgb)
        if f.look == "crown":  # the side towards the sun is brighter
            x, y = shapely.get_coordinates(f.shape.centroid)[0] * 0.4 - np.multiply(style.shadow, f.height_m * 0.2)
            sunny = rings[k][0] * 0.6 + (x, y)
            canvas.fill([sunny], scale(f.rgb, 1.25))
        elif f.tags or (f.height_m == 0 and f.shape.area > 30):
            look_map.fill(rings[k], looks[f.look])
    strength = np.array([TEXTURE.get(look, SMOOTH) for look in looks], np.float32)
    light = np.ones((scene_px, scene_px), np.float32)
    for k, grain_m in enumerate((gsd_m, 4.0, 30.0)):
        light += noise(scene_px, grain_m / gsd_m, rng) * strength[:, k][np.asarray(look_map.image)]
    ground = np.array(canvas.image.reduce(2), np.float32)
    ground *= light[..., None]
    np.clip(ground, 0, 255, out=ground)
    seen_by = Image.fromarray(ground.astype(np.uint8)).filter(ImageFilter.GaussianBlur(style.blur_px))
    values = np.array(seen_by, np.float32)
    values *= (1 - style.haze) * style.gain
    values += np.array(style.haze_rgb, np.float32) * style.haze
    values += rng.standard_normal((scene_px, scene_px, 1), dtype=np.float32) * style.noise
    return np.clip(values, 0, 255, out=values).astype(np.uint8)
