import pyarrow as pa

from urbancross import schemas
from urbancross.captions.told import Telling, Told, tags_to_tell, with_other_tags

ROW = {
    "center_tags": ["amenity=school"],
    "surrounding_tags": ["highway=service", "leisure=pitch", "building=house"],
    "nearby_tags": ["landuse=forest", "amenity=school"],
}
SPARSE = ROW | {"surrounding_tags": []}


def test_a_tile_is_told_its_own_tags_up_to_the_most():
    assert tags_to_tell(ROW, Telling(), 0) == Told(("amenity=school",), tuple(ROW["surrounding_tags"]), "tile")
    assert tags_to_tell(ROW, Telling(max_tags=2), 0).tags == ["amenity=school", "highway=service"]
    assert tags_to_tell(ROW, Telling(tags=False), 0) == Told()


def test_a_sparsely_mapped_tile_is_told_nothing_or_what_lies_nearby():
    assert tags_to_tell(SPARSE, Telling(min_tags=2), 0) == Told()
    assert tags_to_tell(SPARSE, Telling(min_tags=2, sparse="nearby"), 0) == Told(
        ("amenity=school",), ("landuse=forest",), "nearby"
    )
    assert tags_to_tell(SPARSE, Telling(min_tags=3, sparse="nearby"), 0) == Told()
    assert tags_to_tell({}, Telling(sparse="nearby"), 0) == Told()


def test_tags_are_dropped_at_the_rate_that_is_asked_for():
    kept = sum(len(tags_to_tell(ROW, Telling(tag_drop_rate=0.25), seed).tags) for seed in range(2000))
    assert 0.72 < kept / (4 * 2000) < 0.78
    assert tags_to_tell(ROW, Telling(tag_drop_rate=1), 0) == Told()
    assert tags_to_tell(ROW, Telling(tag_drop_rate=0.5), 7) == tags_to_tell(ROW, Telling(tag_drop_rate=0.5), 7)


def table(tags):
    rows = [{"tile_id": f"t{i}", "center_tags": own, "surrounding_tags": []} for i, own in enumerate(tags)]
    return pa.Table.from_pylist(rows, schema=schemas.GEOTAGS)


def test_shuffled_tags_are_those_of_another_tile_and_none_is_lost():
    tags = [["a=1"], [], ["a=2"], ["a=3"], None, ["a=4"]]
    for seed in range(10):
        rows = with_other_tags(table(tags), seed).to_pylist()
        told = [tags_to_tell(row, Telling(shuffle_tags=True), 0).tags for row in rows]
        assert [len(given) for given in told] == [1, 0, 1, 1, 0, 1]  # tiles without tags stay without
        assert sorted(tag for given in told for tag in given) == ["a=1", "a=2", "a=3", "a=4"]
        assert not any(given and given == own for given, own in zip(told, tags, strict=True))
        assert [row["center_tags"] for row in rows] == tags
    assert with_other_tags(table(tags), 1).equals(with_other_tags(table(tags), 1))
    with_other_tags(table([]), 0)
