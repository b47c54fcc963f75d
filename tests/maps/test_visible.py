from urbancross.maps.visible import is_area, tag_list, visible


def test_only_what_is_seen_from_above_remains_of_the_tags():
    assert visible({"name": "Main", "maxspeed": "30", "highway": "residential", "bridge": "no"}) == {
        "highway": "residential"
    }
    assert visible({"building": "yes", "addr:street": "Main", "amenity": "cafe"}) == {"building": "yes"}
    assert visible({"sport": "tennis;chess"}) == {"sport": "tennis"}
    assert visible({"highway": "motorway", "tunnel": "yes"}) == {}
    assert visible({"highway": "motorway", "tunnel": "no"}) == {"highway": "motorway"}


def test_the_area_tag_decides_and_otherwise_one_area_tag_is_enough():
    assert is_area({"highway": "pedestrian", "area": "yes"})
    assert not is_area({"highway": "pedestrian"})
    assert not is_area({"building": "yes", "area": "no"})
    assert is_area({"barrier": "hedge", "landuse": "meadow"})
    assert not is_area({"natural": "coastline"})
    assert is_area({"railway": "station"})


def test_a_value_that_is_told_twice_is_one_tag():
    assert tag_list({"sport": "tennis; tennis;soccer"}) == ["sport=tennis", "sport=soccer"]
