"""The loop around a model, with scripted engines: what is asked again, repaired, dropped, or written otherwise."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from urbancross import schemas
from urbancross.captions.captioner import Asking, ModelCaptioner, Tile, tally
from urbancross.captions.prompts import Facts
from urbancross.captions.told import Told
from urbancross.errors import TileError, TileSkipped


def picture(kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def tile(name="t", image=None, center=("water=lake",), told=None):
    told = Told(tuple(center), (), "tile") if told is None else told
    return Tile(name, picture() if image is None else image, Facts(), center, (), told)


def answer(description, land_use="water"):
    return json.dumps({"description": description, "land_use": land_use, "objects": ["boat"]})


class Engine:
    """Says what it is told to, one text a question, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def __call__(self, questions):
        self.asked += questions
        return [self.texts.pop(0) for _ in questions]


def written(engine, *tiles, **asking):
    return ModelCaptioner(engine, "vllm", "m", Asking(**asking)).captions(tiles or [tile()])


def test_an_answer_becomes_a_row_that_can_be_audited():
    row = written(Engine(answer("A lake with boats.")))["t"]
    assert row["captions"] == ["A lake with boats."]
    assert (row["engine"], row["model"], row["tags"], row["tags_from"]) == ("vllm", "m", ["water=lake"], "tile")
    assert (row["land_use"], row["objects"], row["attempts"], row["repaired"]) == ("water", ["boat"], 1, False)
    assert row["verdict"]["word"] == "not in map"  # boats
    pa.Table.from_pylist([{"tile_id": "t", "failure": None, **row}], schema=schemas.CAPTIONS)


def test_an_answer_that_cannot_be_read_is_asked_for_again_with_another_seed():
    engine = Engine("no JSON", answer("A lake."))
    row = written(engine)["t"]
    assert row["attempts"] == 2
    assert engine.asked[0].seed != engine.asked[1].seed
    assert engine.asked[0].text == engine.asked[1].text


def test_a_contradiction_is_asked_for_again_and_at_last_without_tags():
    engine = Engine(*[answer("A river.")] * 3)
    row = written(engine, attempts=2)["t"]
    assert row["captions"] == ["A river."]
    assert (row["attempts"], row["tags_from"], row["tags"]) == (3, "none", [])
    assert row["verdict"]["word"] == "contradicted"
    assert ["water" in question.text for question in engine.asked] == [True, True, False]


def test_a_contradiction_is_kept_or_dropped_where_that_is_asked_for():
    assert written(Engine(answer("A river.")), on_contradiction="keep")["t"]["attempts"] == 1
    dropped = written(Engine(answer("A river.")), on_contradiction="drop")["t"]
    assert isinstance(dropped, TileSkipped)
    assert "river (map: water=lake)" in str(dropped)


def test_where_nothing_can_be_read_the_template_speaks_for_the_tags():
    row = written(Engine("", "", "", ""))["t"]
    assert row["engine"] == "template"
    assert "a lake" in row["captions"][0].lower()
    assert row["tags"] == ["water=lake"]
    problem = written(Engine("x", "x", "x", "x"), fallback=False)["t"]
    assert isinstance(problem, TileError)
    assert "no JSON with a description: 'x'" in str(problem)
    assert isinstance(written(Engine("", "", ""), tile(told=Told()))["t"], TileError)  # no tags, and none asked twice


def test_a_second_best_answer_beats_the_template():
    row = written(Engine(answer("A river."), "", "", ""))["t"]
    assert (row["engine"], row["captions"]) == ("vllm", ["A river."])


def test_a_bad_image_and_a_refused_question_cost_one_row_each():
    engine = Engine(TileError("the prompt is too long"), answer("A lake."))
    rows = written(engine, tile("bad", b"\xff\xd8\xff cut"), tile("empty", b""), tile("long"), tile("good"))
    assert {name: type(row) for name, row in rows.items()} == {
        "bad": TileError,
        "empty": TileError,
        "long": TileError,
        "good": dict,
    }
    assert str(rows["long"]) == "the prompt is too long"
    assert len(engine.asked) == 2  # neither again


def test_several_captions_of_a_tile_come_from_several_seeds_and_none_twice():
    engine = Engine(answer("A lake."), answer("A pond."), answer("A lake."))
    row = written(engine, captions_per_tile=3)["t"]
    assert row["captions"] == ["A lake.", "A pond."]
    assert len({question.seed for question in engine.asked}) == 3


def test_seeds_do_not_depend_on_the_tiles_beside_a_tile():
    alone, among = Engine(answer("A.")), Engine(*[answer("A.")] * 3)
    written(alone, tile("b"))
    written(among, tile("a"), tile("b"), tile("c"))
    assert (among.asked[1].text, among.asked[1].seed) == (alone.asked[0].text, alone.asked[0].seed)


def test_what_happened_is_counted():
    rows = [
        written(Engine("no", answer("A lake.")))["t"],
        written(Engine(answer("A lake.")[:26]))["t"],
        written(Engine("", "", "", ""))["t"],
        written(Engine(answer("A river.")), on_contradiction="keep")["t"],
    ]
    rows = [{"tile_id": str(i), "failure": None, **row} for i, row in enumerate(rows)]
    rows.append({"tile_id": "f", "failure": "failed:corrupt"})
    assert tally(pa.Table.from_pylist(rows, schema=schemas.CAPTIONS)) == {
        "repaired": 1,
        "asked again": 2,
        "from the template": 1,
        "contradict the map": 1,
    }
    assert set(tally(schemas.CAPTIONS.empty_table()).values()) == {0}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_reach_the_engine_as_they_are(kind):
    engine = Engine(answer("A lake."))
    data = picture(kind)
    written(engine, tile(image=data))
    assert engine.asked[0].image == data
