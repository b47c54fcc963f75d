"""The demo's two small countries: GeoTIFF scenes and an OSM file that describes them imperfectly, from a seed.

Pixels and map come from the same shapes, so where they disagree, it was meant: `truth.geojson` says what is on the
ground and how the map treats it. Nothing here knows of tiles, captions or retrieval.
"""

from urbancross.world.country import NORTHLAND, SOUTHLAND, Country
from urbancross.world.scenes import WrittenCountry, write_country

__all__ = ["NORTHLAND", "SOUTHLAND", "Country", "WrittenCountry", "write_country"]
