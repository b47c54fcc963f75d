import pytest

from urbancross.captions.template import TemplateCaptioner
from urbancross.captions.truth import claims, judge
from urbancross.captions.words import NOUNS, noun


def test_claims_are_found_in_singular_and_plural_the_longest_first():
    found = claims("Two churches and factories beside a swimming pool, near a railway station. Glass everywhere.")
    assert set(found) == {"churches", "factories", "swimming pool", "railway station"}


def test_what_a_text_denies_is_no_claim():
    assert set(claims("Farmland without any buildings and no paved roads; trees")) == {"farmland", "trees"}


def test_supported_not_in_the_map_and_contradicted_are_kept_apart():
    verdict = judge(["A river runs past houses and a school."], ["water=lake", "natural=water"], ["building=house"])
    assert verdict.supported == ["houses"]
    assert verdict.not_in_map == ["school"]
    assert verdict.contradictions == ["river (map: water=lake)"]
    assert verdict.word == "contradicted"
    assert verdict.precision == pytest.approx(1 / 3)
    assert verdict.coverage == pytest.approx(1 / 3)  # of water=lake, natural=water, building=house the last


def test_a_value_speaks_for_itself_under_any_key():
    assert judge(["Hotels by a harbour."], ["building=hotel"], ["landuse=harbour"]).word == "supported"


def test_a_vague_tag_supports_what_nothing_answers_otherwise():
    assert judge(["A river."], ["natural=water"], []).word == "supported"
    assert judge(["A lake."], ["natural=water"], []).word == "supported"
    assert judge(["A lake."], ["natural=water"], ["waterway=river"]).word == "contradicted"
    assert judge(["A lake."], ["waterway=river"], ["water=pond"]).word == "supported"  # it has both


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("A baseball field.", "sport=soccer"),
        ("A mosque.", "building=church"),
        ("A vineyard.", "landuse=orchard"),
        ("Solar panels.", "generator:source=wind"),
        ("A forest.", "natural=desert"),
    ],
)
def test_another_answer_to_the_same_question_is_a_contradiction(text, tag):
    assert judge([text], [tag], []).word == "contradicted"
    assert judge([text], ["highway=residential"], []).word == "not in map"


def test_the_main_land_use_is_held_against_the_map():
    assert judge([], ["landuse=farmland"], [], "industrial").contradictions == [
        "main land use industrial (map: agriculture)"
    ]
    assert judge([], ["landuse=farmland"], ["landuse=industrial"], "industrial").contradictions == []
    assert judge([], ["highway=track"], [], "industrial").contradictions == []  # the map says nothing of it
    assert judge([], ["landuse=farmland"], [], "mixed").contradictions == []


def test_without_tags_there_is_no_map_and_without_claims_no_precision():
    assert judge(["A river."], [], []).word == "no map"
    assert judge(["A river."], [], []).precision is None
    verdict = judge(["Something grey."], ["landuse=forest"], [])
    assert (verdict.word, verdict.precision, verdict.coverage) == ("no claim", None, 0.0)


def test_every_noun_of_the_templates_is_supported_by_its_tag():
    for tag in NOUNS:
        assert judge([f"A satellite image of {noun(tag)}."], [tag], []).word == "supported", tag


def test_captions_from_templates_are_true():
    center, around = ["amenity=school", "building=school"], ["highway=service", "leisure=pitch", "water=pond"]
    for seed in range(20):
        verdict = judge(TemplateCaptioner().captions(center, around, seed), center, around)
        assert (verdict.word, verdict.precision) == ("supported", 1.0)
    wrong = judge(TemplateCaptioner().captions(center, around, 0), ["landuse=quarry"], [])
    assert wrong.precision == 0.0
