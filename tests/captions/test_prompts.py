import base64
import json
import re

import jsonschema
import pytest
import xgrammar
from tiny_vlm import tokenizer

from urbancross.captions.prompts import (
    INSTRUCTIONS,
    LAND_USES,
    Facts,
    answer_schema,
    messages,
    parse,
    prompt,
    season_of,
)
from urbancross.errors import TileError

GOOD = {"description": "A park. Two lakes.", "land_use": "recreation", "objects": ["lake", "park"]}


def test_the_prompt_without_tags_has_no_empty_slot():
    assert prompt(["amenity=school"], ["highway=service"]) == (
        "Please give a comprehensive and detailed description of the satellite image and its geographical tags: "
        "amenity of school; surrounded by road of service."
    )
    assert prompt([], []) == "Please give a comprehensive and detailed description of the satellite image."


def test_what_is_known_of_a_tile_is_told_and_what_is_not_is_left_out():
    told = prompt([], [], Facts("finland", (24.9, 60.1, 25.1, 60.3), "2021-07-15T10:00:00Z", 0.5))
    assert told.startswith("Place: finland, 60.20 degrees north, 25.00 degrees east. Season: summer. One pixel is")
    assert prompt([], [], Facts()) == prompt([], [])
    assert "Season" not in prompt([], [], Facts(datetime="2021-07-15"))  # of which half of the globe?
    assert "179.90 degrees west" in prompt([], [], Facts(bounds=(179.9, -17.0, -179.7, -16.0)))


def test_seasons_turn_round_at_the_equator_and_the_tropics_have_none():
    months = [f"2021-{month:02d}-01" for month in (1, 4, 7, 10)]
    assert [season_of(month, 50) for month in months] == ["winter", "spring", "summer", "autumn"]
    assert [season_of(month, -50) for month in months] == ["summer", "autumn", "winter", "spring"]
    assert season_of("2021-12-31", 50) == "winter"
    assert season_of("2021-07-01", 10) is None
    assert season_of(None, 50) is None


def test_instructions_stand_before_the_image_and_the_tile_after_it():
    data = b"\x89PNG...."
    (turn,) = messages(data, "of this tile")
    assert [part["type"] for part in turn["content"]] == ["text", "image_url", "text"]
    assert turn["content"][0]["text"] == INSTRUCTIONS
    assert turn["content"][2]["text"] == "of this tile"
    kind, coded = turn["content"][1]["image_url"]["url"].split(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(coded) == data
    assert "image/jpeg" in messages(b"\xff\xd8\xff\xe0", "")[0]["content"][1]["image_url"]["url"]


def test_the_schema_takes_good_answers_and_no_control_characters():
    schema = answer_schema(400)
    jsonschema.validate(GOOD, schema)
    for wrong in (
        GOOD | {"description": "A\npark."},
        GOOD | {"description": 'A "park".'},
        GOOD | {"description": "x" * 401},
        GOOD | {"land_use": "moon"},
        GOOD | {"objects": ["a"] * 9},
        GOOD | {"colour": "red"},
        {"description": "A park."},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert set(schema["properties"]["land_use"]["enum"]) == set(LAND_USES)
    assert all(re.fullmatch("[a-z]+", use) for use in LAND_USES)


def test_an_answer_is_read_whole():
    answer = parse(json.dumps(GOOD))
    assert (answer.description, answer.land_use, answer.objects) == (
        "A park. Two lakes.",
        "recreation",
        ("lake", "park"),
    )
    assert not answer.repaired


@pytest.mark.parametrize(
    ("text", "description"),
    [
        (f"Sure!\n```json\n{json.dumps(GOOD)}\n```", "A park. Two lakes."),
        ('{"description":"A park. Two la', "A park."),
        ('{"description":"A park","land_use":"recre', "A park"),
        ('{"description": "A\\npark. Tw', "A park."),
    ],
)
def test_an_answer_that_was_cut_or_wrapped_is_repaired_and_says_so(text, description):
    answer = parse(text)
    assert answer.description == description
    assert answer.repaired


@pytest.mark.parametrize(
    "text", ["", "A park.", "{}", '{"description": ""}', '{"description":"A pa', "[1]", '{"description": 3}']
)
def test_no_description_is_no_answer(text):
    with pytest.raises(TileError, match="no JSON with a description"):
        parse(text)


def test_an_unknown_land_use_is_left_out():
    assert parse(json.dumps(GOOD | {"land_use": "moon", "objects": "lake"})).land_use is None


@pytest.mark.parametrize("max_chars", [40, 131, 400])
def test_xgrammar_holds_answers_to_the_schema_at_any_length(max_chars):
    tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer())
    schema = json.dumps(answer_schema(max_chars))
    grammar = xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)

    def takes(description: str) -> bool:
        answer = json.dumps({"description": description, "land_use": "water", "objects": ["boat"]})
        return xgrammar.GrammarMatcher(grammar).accept_string(answer)

    lengths = [2, 3, max_chars, max_chars + 1]
    assert [takes("a" * length) for length in lengths] == [False, True, True, False]
    assert not takes("a\nlake")
