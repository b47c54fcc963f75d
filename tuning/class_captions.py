"""Captions from the names of classes, so that EuroSAT and RSSCN7 can be searched by text like captioned sets.

    python tuning/class_captions.py --images shared/data/eurosat_classes --out FOLDER
    urbancross ingest --source FOLDER --archive E --domain eurosat

`--images` holds a folder per class. Five wordings a tile, the same for a whole class: measure by `unique-text`, for by
`field` a text's own tile alone would count. Writes FOLDER/captions.jsonl and links the images.
"""

import argparse
import json
from pathlib import Path

CLASSES = {
    "AnnualCrop": "annual crops on farmland",
    "Forest": "a forest with dense trees",
    "HerbaceousVegetation": "grassland with shrubs",
    "Highway": "a highway",
    "Industrial": "an industrial area with large buildings",
    "Pasture": "a green pasture",
    "PermanentCrop": "orchards or vineyards on farmland",
    "Residential": "a residential area with many houses",
    "River": "a river",
    "SeaLake": "the water of a sea or a lake",
    "aGrass": "grassland",
    "bField": "farmland with fields",
    "cIndustry": "an industrial area with large buildings",
    "dRiverLake": "a river or a lake",
    "eForest": "a forest with dense trees",
    "fResident": "a residential area with many houses",
    "gParking": "a parking lot with many cars",
}
WORDINGS = ("this is {}", "a satellite image of {}", "{} seen from above", "there is {} here", "an aerial photo of {}")
EUROSAT_M = 10.0  # Sentinel-2's pixel; those of RSSCN7 are of four sizes that nobody tells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", required=True)
    told = parser.parse_args()
    images, home = Path(told.images).absolute(), Path(told.out)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "images").exists():
        (home / "images").symlink_to(images)
    classes = sorted(folder.name for folder in images.iterdir() if folder.name in CLASSES)
    gsd_m = EUROSAT_M if "AnnualCrop" in classes else None
    rows = [
        {
            "image": f"images/{name}/{file.name}",
            "captions": [wording.format(CLASSES[name]) for wording in WORDINGS],
            "gsd_m": gsd_m,
        }
        for name in classes
        for file in sorted((images / name).iterdir())
    ]
    (home / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows):,} tiles of {len(classes)} classes in {home}")


if __name__ == "__main__":
    main()
