import pytest

from urbancross.captions.words import NOUNS, mentions, noun, phrase, phrases, truncate
from urbancross.maps.visible import visible

CENTER = ["amenity=school", "highway=residential"]


def test_tags_are_written_out_as_key_of_value():
    assert phrase(CENTER, ["highway=service"]) == (
        "amenity of school, road of residential; surrounded by road of service"
    )
    assert phrase(["building=yes", "amenity=place_of_worship"], []) == "building, amenity of place of worship"
    assert phrase([], ["natural=wood"]) == "surrounded by natural of wood"
    assert phrase([], []) == ""


def test_a_noun_is_found_for_tags_in_and_out_of_the_table():
    assert noun("building=house") == "houses"
    assert noun("aeroway=runway") == "an airport runway"
    assert noun("building=train_station") == "train station buildings"
    assert noun("highway=corniche") == "corniche roads"
    assert noun("man_made=spoil_heap") == "man made of spoil heap"
    assert noun("building=yes") == "buildings"


def test_a_caption_splits_at_its_marks():
    assert phrases("A park, with trees; a lake.  Two roads. ") == ["A park", "with trees", "a lake", "Two roads"]
    assert phrases(" . ") == []


def test_a_text_mentions_a_tag_by_whole_words():
    assert mentions("A School beside a field", "amenity=school")
    assert not mentions("preschools", "amenity=school")
    assert mentions("rows of houses", "building=house")
    assert mentions("a bridge", "bridge=yes")
    assert not mentions("yes", "bridge=yes")


def at_most(words: int):
    return lambda text: len(text.split()) <= words


def test_a_caption_that_fits_stays_as_it_is():
    assert truncate("One two. Three.", at_most(3), ["amenity=school"]) == ("One two. Three.", False)


def test_sentences_that_name_a_tag_are_kept_before_others_and_in_order():
    text = "The sky is clear. A school stands here. Light falls. A park is near."
    tags = ["amenity=school", "leisure=park"]
    assert truncate(text, at_most(8), tags) == ("A school stands here. A park is near.", True)
    assert truncate(text, at_most(10), tags) == ("A school stands here. Light falls. A park is near.", True)
    assert truncate(text, at_most(8), []) == ("The sky is clear. A school stands here.", True)


@pytest.mark.parametrize(("words", "kept"), [(3, "A school stands"), (0, "")])
def test_a_single_sentence_that_is_too_long_is_cut_between_words(words, kept):
    assert truncate("Light falls all over it. A school stands here.", at_most(words), ["amenity=school"]) == (
        kept,
        True,
    )


def test_every_noun_belongs_to_a_tag_that_the_geotags_let_through():
    for tag in NOUNS:
        key, value = tag.split("=")
        assert visible({key: value}) == {key: value}
