"""From people's captions to the answers that a captioner learns."""

import json
import re

import pytest
from captioner_answers import answers, land_use_of, named, objects_of, tidy

from urbancross.captions import prompts

LINES = [
    "many planes are parked next to a long building in an airport .",
    "many planes are parked next to a long building in an airport .",
    "several planes are near a terminal with parking lots .",
    "two factories and some houses are beside the runway .",
]


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("a playground is surrounded by trees .", "A playground is surrounded by trees."),
        ("many  buildings ,some trees ;a road", "Many buildings,some trees;a road."),
        ("it`s a “pond” of 20\n% water..", "It's a pond of 20 % water."),
        ("2 boats .", "Boats."),
        (" . ", ""),
    ],
)
def test_a_caption_becomes_a_sentence_that_the_schema_takes(caption: str, sentence: str):
    assert tidy(caption) == sentence


def test_answers_fit_the_schema_without_blanks_and_are_read_back():
    schema = prompts.answer_schema(400)["properties"]
    for text, _ in answers([*LINES, "an “odd” one with ünknown marks: [x] ."]).items():
        answer = json.loads(text)
        assert list(answer) == ["description", "land_use", "objects"]
        assert text == json.dumps(answer, separators=(",", ":"))
        assert re.fullmatch(schema["description"]["pattern"], answer["description"])
        assert answer["land_use"] in schema["land_use"]["enum"]
        assert len(answer["objects"]) <= schema["objects"]["maxItems"]
        assert all(re.fullmatch(schema["objects"]["items"]["pattern"], noun) for noun in answer["objects"])
        assert prompts.parse(text) == prompts.Answer(
            answer["description"], answer["land_use"], tuple(answer["objects"]), repaired=False
        )


def test_equal_captions_are_one_answer_that_weighs_more():
    assert list(answers(LINES).values()) == [0.5, 0.25, 0.25]


def test_the_longest_noun_is_named_singular_and_once():
    assert named("Two factories, a factory, storage tanks and a parking lot") == (
        "factory",
        "storage tank",
        "parking lot",
    )
    assert named("grass, glasses and parks") == ("grass", "park")


def test_land_use_follows_the_most_captions_and_is_mixed_where_none_tells():
    assert land_use_of(LINES) == "transport"
    assert land_use_of(["a house near a river", "a river"]) == "water"
    assert land_use_of(["it is very nice here"]) == "mixed"


def test_objects_are_what_two_captions_name_unless_there_is_only_one():
    assert objects_of(LINES) == ["plane", "building", "airport"]
    assert objects_of(["a boat near a pier"]) == ["boat", "pier"]
