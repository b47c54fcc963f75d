"""The two countries: where they are, how they look, and how far their maps are to be trusted."""

from dataclasses import dataclass

from pyproj import Transformer

from urbancross.world.shapes import RGB, Style

PAINT: dict[str, RGB] = {
    "white": (232, 234, 234),
    "red": (172, 58, 48),
    "blue": (52, 84, 142),
    "dark": (52, 52, 56),
    "orange": (204, 128, 58),
}


@dataclass(frozen=True)
class Country:
    """A place, a look, and how far its map is to be trusted."""

    name: str
    lon: float  # degrees; its UTM zone follows from these two
    lat: float
    gsd_m: float
    taken: str  # when the scenes were seen, as TIFF writes it
    compress: str  # of the GeoTIFF: jpeg | deflate
    style: Style
    omitted: float  # share of the features on the ground that the map lacks
    stale: float  # features in the map that are gone from the ground, as a share of those that are there
    wrong: float  # share of the features on the ground that carry another class's tags

    @property
    def crs(self) -> str:
        """UTM, as `EPSG:...`."""
        return f"EPSG:{(32600 if self.lat >= 0 else 32700) + int((self.lon + 180) // 6) + 1}"

    @property
    def origin(self) -> tuple[float, float]:
        """North-west corner of the first scene: UTM metres east and north, on whole pixels."""
        east, north = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True).transform(self.lon, self.lat)
        return round(east / 100) * 100.0, round(north / 100) * 100.0


def colours(text: str) -> dict[str, RGB]:
    """`"sand e6d4ac foam dee0d2"` -> looks and their RGB."""
    words = text.split()
    rgb = [tuple(bytes.fromhex(code)) for code in words[1::2]]
    return {look: (red, green, blue) for look, (red, green, blue) in zip(words[::2], rgb, strict=True)}


NORTHLAND = Country(
    name="northland",
    lon=10.4,
    lat=55.4,
    gsd_m=0.7,
    taken="2024:06:18 10:32:00",
    compress="jpeg",
    omitted=0.06,
    stale=0.02,
    wrong=0.03,
    style=Style(
        palette=PAINT
        | colours(
            """
            grass 627848  lawn 6e864e  meadow 7c8e54  forest 263824  crown 36522e  crop a6a45c
            crop_green 58803e  stubble b8aa74  soil 806c56  water 243e52  sand d0c4a2  foam ced8da
            road 82807e  asphalt 626266  dirt a8987a  concrete acaaa4  gravel 8a8278  rail 58504c
            pier 9e907c  roof_house aa4c36  roof_flat 989492  roof_hall bcc2c8  roof_school 88423a
            steel e2e4e2  panel 242c4c  pitch 548a40  running b45440  court 386692  pool 5cb0c8
            grave c6c4be  fairway 80a454  green 96ba66
            """
        ),
        courtyards=False,
        wobble=0.1,
        crown_m=6.5,
        forest_gap_m=5.6,
        shadow=(0.35, -0.75),
        shade=0.5,
        haze=0.05,
        haze_rgb=(190, 205, 225),
        gain=1.04,
        blur_px=0.5,
        noise=2.0,
    ),
)
SOUTHLAND = Country(
    name="southland",
    lon=18.6,
    lat=-33.2,
    gsd_m=0.95,
    taken="2023:02:09 08:15:00",
    compress="deflate",
    omitted=0.18,
    stale=0.05,
    wrong=0.08,
    style=Style(
        palette=PAINT
        | colours(
            """
            grass ac9464  lawn 8e8a56  meadow b89c6a  forest 7a6c46  crown 525834  crop ccae72
            crop_green 707a40  stubble b08c58  soil b27c52  water 3e6868  sand e6d4ac  foam dee0d2
            road 968a7c  asphalt 766e6a  dirt c6a478  concrete ccbea8  gravel b8a48c  rail 706054
            pier ac987e  roof_house e0d6c4  roof_flat cec6b8  roof_hall a0b0be  roof_school be845c
            steel e8e2d4  panel 323448  pitch 86904e  running c06442  court 4a8070  pool 68b8be
            grave e2d8c8  fairway 84964c  green 96ac5c
            """
        ),
        courtyards=True,
        wobble=0.15,
        crown_m=6.0,
        forest_gap_m=8.5,
        shadow=(-0.6, 0.35),
        shade=0.58,
        haze=0.16,
        haze_rgb=(226, 208, 178),
        gain=1.02,
        blur_px=0.7,
        noise=3.5,
    ),
)


def corner(country: Country, scene: int, scene_px: int) -> tuple[float, float]:
    """UTM metres of a scene's north-west corner: three scenes to a row, 256 px apart, more than a tile."""
    step = (scene_px + 256) * country.gsd_m
    east, north = country.origin
    return east + scene % 3 * step, north - scene // 3 * step
