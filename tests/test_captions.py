import random

import pytest

from urbancross.captions import NOUNS, TemplateCaptioner, mentions, noun, phrase, phrases, prompt, truncate
from urbancross.maps.visible import visible

CENTER = ["amenity=school", "highway=residential"]
AROUND = ["highway=service", "landuse=farmland", "building=house", "leisure=park"]


def test_tags_are_written_out_as_key_of_value():
    assert phrase(CENTER, ["highway=service"]) == (
        "amenity of school, road of residential; surrounded by road of service"
    )
    assert phrase(["building=yes", "amenity=place_of_worship"], []) == "building, amenity of place of worship"
    assert phrase([], ["natural=wood"]) == "surrounded by natural of wood"
    assert phrase([], []) == ""


def test_the_prompt_without_tags_has_no_empty_slot():
    assert prompt(["amenity=school"], ["highway=service"]) == (
        "Please give a comprehensive and detailed description of the satellite image and its geographical tags: "
        "amenity of school; surrounded by road of service."
    )
    assert prompt([], []) == "Please give a comprehensive and detailed description of the satellite image."


def test_five_different_captions_come_from_many_tags_and_from_one():
    for center, around in [(CENTER, AROUND), (["leisure=marina"], []), ([], ["natural=wood"])]:
        for seed in range(50):
            assert len(set(TemplateCaptioner().captions(center, around, seed))) == 5


def test_a_seed_fixes_the_captions_and_another_changes_them():
    first = TemplateCaptioner().captions(CENTER, AROUND, seed=3)
    random.seed(99)  # the global generator plays no part
    assert TemplateCaptioner().captions(CENTER, AROUND, seed=3) == first
    assert any(TemplateCaptioner().captions(CENTER, AROUND, seed=s) != first for s in range(4, 8))


def test_captions_name_only_what_the_tags_name():
    told = {noun(tag) for tag in CENTER + AROUND}
    others = {words.removeprefix("a ").removeprefix("an ") for words in NOUNS.values()}
    others = {words for words in others if not any(words in mine for mine in told)}
    for seed in range(50):
        for caption in TemplateCaptioner().captions(CENTER, AROUND, seed):
            rest = caption
            for words in sorted(told, key=len, reverse=True):
                rest = rest.replace(words, "").replace(words[0].upper() + words[1:], "")
            assert not [words for words in others if f" {words}" in rest.lower()]
            assert "school" in caption.lower() or "residential" in caption.lower()


def test_captions_are_sentences_whatever_the_tags():
    odd = ["leisure=yes", "man_made=spoil;heap.", "golf=rough", "building=yes", "sport=cricket", "bridge=yes"]
    for tag in odd + CENTER:
        for caption in TemplateCaptioner().captions([tag], ["natural=water"], seed=1):
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert caption.count(".") == 1
            assert "{" not in caption
            assert "_" not in caption


def test_a_noun_is_found_for_tags_in_and_out_of_the_table():
    assert noun("building=house") == "houses"
    assert noun("aeroway=runway") == "an airport runway"
    assert noun("building=train_station") == "train station buildings"
    assert noun("highway=corniche") == "corniche roads"
    assert noun("man_made=spoil_heap") == "man made of spoil heap"
    assert noun("building=yes") == "buildings"


def test_two_tags_with_one_noun_are_told_once():
    (caption,) = TemplateCaptioner().captions(["natural=tree"], ["water=river", "waterway=river"], seed=0, count=1)
    assert caption.count("a river") == 1
    for caption in TemplateCaptioner().captions(["water=river"], ["waterway=river"], seed=0):
        assert caption.lower().count("a river") == 1


def test_without_tags_there_is_nothing_to_say():
    assert TemplateCaptioner().captions([], [], seed=0) == []


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
