import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from urbancross import tiles
from urbancross.errors import ConfigError, TileError

NOISE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)  # H 8, W 10


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(tmp_path: Path, data: bytes, name: str = "tile") -> bytes:
    (tmp_path / name).write_bytes(data)
    return tiles.read_image(tmp_path / name)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 80}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_rgb_images_are_kept_byte_for_byte(tmp_path, kind, options):
    data = encoded(Image.fromarray(NOISE), kind, **options)
    assert read(tmp_path, data) == data


def test_another_encoding_becomes_png_with_the_same_pixels(tmp_path):
    kept = read(tmp_path, encoded(Image.fromarray(NOISE), "TIFF"))
    assert Image.open(io.BytesIO(kept)).format == "PNG"
    np.testing.assert_array_equal(tiles.decode(kept), NOISE)


def test_a_cmyk_jpeg_becomes_rgb_of_the_same_colours(tmp_path):
    red = np.zeros((16, 16, 4), dtype=np.uint8)
    red[...] = (0, 255, 255, 0)  # no cyan, all magenta and yellow
    kept = read(tmp_path, encoded(Image.fromarray(red, "CMYK"), "JPEG", quality=95))
    assert Image.open(io.BytesIO(kept)).mode == "RGB"
    np.testing.assert_allclose(tiles.decode(kept)[8, 8], (255, 0, 0), atol=6)


def test_a_16_bit_image_keeps_its_high_byte_instead_of_turning_white(tmp_path):
    deep = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]], dtype=np.uint16)
    kept = read(tmp_path, encoded(Image.fromarray(deep), "PNG"))
    wanted = np.repeat(np.array([[0, 0, 1, 0x12, 0x80, 0xFF]], dtype=np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(tiles.decode(kept), wanted)
    assert Image.open(io.BytesIO(kept)).mode == "RGB"
    np.testing.assert_array_equal(tiles.decode((tmp_path / "tile").read_bytes()), wanted)


def test_greyscale_palette_and_transparent_images_become_rgb(tmp_path):
    grey = Image.fromarray(NOISE[..., 0])
    np.testing.assert_array_equal(tiles.decode(read(tmp_path, encoded(grey, "PNG"))), np.stack([NOISE[..., 0]] * 3, -1))

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(tiles.decode(read(tmp_path, encoded(palette, "PNG"))), [[(10, 20, 30), (40, 50, 60)]])

    clear = np.concatenate([NOISE, np.full((8, 10, 1), 128, np.uint8)], axis=2)
    kept = read(tmp_path, encoded(Image.fromarray(clear), "PNG"))
    assert Image.open(io.BytesIO(kept)).mode == "RGB"
    np.testing.assert_array_equal(tiles.decode(kept), NOISE)


def test_an_image_of_one_pixel_is_a_tile(tmp_path):
    data = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
    np.testing.assert_array_equal(tiles.decode(read(tmp_path, data)), [[(1, 2, 3)]])


def test_files_that_are_no_whole_image_fail_with_the_reason(tmp_path):
    jpeg, png = (encoded(Image.fromarray(np.tile(NOISE, (8, 8, 1))), kind) for kind in ("JPEG", "PNG"))
    for data, reason in [
        (b"", "empty file"),
        (b"this is a text", "not an image"),
        (jpeg[: len(jpeg) // 2], "corrupt image: image file is truncated"),
        (png[: len(png) // 2], "corrupt image: "),
        (jpeg[:10], "not an image|corrupt image"),
    ]:
        with pytest.raises(TileError, match=reason):
            read(tmp_path, data, "tile.jpg")
    for data in (b"", b"text", jpeg[: len(jpeg) // 2]):
        with pytest.raises(TileError):
            tiles.decode(data)


def test_an_absent_file_and_a_folder_fail_with_the_reason(tmp_path):
    with pytest.raises(TileError, match="no such file"):
        tiles.read_image(tmp_path / "absent.jpg")
    with pytest.raises(TileError, match="cannot be read: Is a directory"):
        tiles.read_image(tmp_path)


def test_an_image_too_wide_to_be_a_tile_is_refused_with_its_size(tmp_path):
    with pytest.raises(TileError, match="20000 x 1 px, at most 8192 a side"):
        read(tmp_path, encoded(Image.new("1", (20_000, 1)), "PNG"))
    assert tiles.decode(read(tmp_path, encoded(Image.new("1", (8192, 1)), "PNG"))).shape == (1, 8192, 3)


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path):
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(TileError, match="too large"):
        read(tmp_path, bomb)


def test_a_footprint_is_the_box_of_its_bounds():
    assert shapely.from_wkb(tiles.footprint([24.0, 60.0, 25.0, 61.5])).bounds == (24.0, 60.0, 25.0, 61.5)
    assert tiles.footprint(None) is None
    fiji = shapely.from_wkb(tiles.footprint([177.0, -20.0, -178.0, -15.0]))
    assert sorted(part.bounds for part in fiji.geoms) == [(-180, -20, -178, -15), (177, -20, 180, -15)]


def test_a_box_is_four_numbers_in_order():
    assert tiles.parse_bbox("24.9,60.1, 25,60.2") == (24.9, 60.1, 25.0, 60.2)
    assert tiles.parse_bbox("-180,-90,180,90") == (-180, -90, 180, 90)
    assert tiles.parse_bbox("177,-20,-178,-15") == (177, -20, -178, -15)  # Fiji


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "2,0,1,1", "0,2,1,1", "0,0,0,1", "-181,0,1,1", "0,0,1,91", "nan,0,1,1"],
)
def test_a_box_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=rf"--bbox {text}: want west,south,east,north"):
        tiles.parse_bbox(text)
