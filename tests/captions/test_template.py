import random

from urbancross.captions.template import TemplateCaptioner
from urbancross.captions.words import NOUNS, noun

CENTER = ["amenity=school", "highway=residential"]
AROUND = ["highway=service", "landuse=farmland", "building=house", "leisure=park"]


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


def test_two_tags_with_one_noun_are_told_once():
    (caption,) = TemplateCaptioner().captions(["natural=tree"], ["water=river", "waterway=river"], seed=0, count=1)
    assert caption.count("a river") == 1
    for caption in TemplateCaptioner().captions(["water=river"], ["waterway=river"], seed=0):
        assert caption.lower().count("a river") == 1


def test_without_tags_there_is_nothing_to_say():
    assert TemplateCaptioner().captions([], [], seed=0) == []
