import pytest

from urbancross.captions.land_cover import land_cover


@pytest.mark.parametrize(
    ("captions", "cover"),
    [
        (["many buildings and green trees are around a playground .", "a playground in a city"], "urban"),
        (["a football field near a parking lot", "two baseball fields"], "urban"),
        (["many pieces of farmlands are orderly together .", "it is a piece of cropland"], "farmland"),
        (["many trees are in a piece of forest", "dense woods beside a road"], "forest"),
        (["a river runs through a wheat field .", "this river is long and narrow ."], "water"),
        (["a yellow desert", "Bare land with some rocks"], "open land"),
        (["a lake and a forest"], "mixed"),
        (["many green plants"], "mixed"),
        ([], "mixed"),
    ],
)
def test_the_cover_is_what_most_captions_name(captions, cover):
    assert land_cover(captions) == cover
