"""How fast is `urbancross embed`, beside clip-retrieval, Daft and plain Ray Data, on the same tiles and weights?

    python benchmarks/embed.py --source RSICD --out FOLDER --clip-retrieval PYTHON --daft PYTHON [--rounds 5]

The tiles are those of a captioned set's split, once and three times over; the weights are of `--architecture`, drawn
from a seed and kept in a file that all four load. Each contender is a process of its own from its start to its end,
from tiles in Parquet (clip-retrieval: in tars, which it reads instead) to vectors in files. Rounds are one process of
each contender and size, again and again. Milliseconds a tile without the start are the slope between the two sizes.

Environments of the rivals: `pip install clip-retrieval`, `pip install daft torch open-clip-torch pillow`, both with the
torch of this one; plain Ray Data runs in this one.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1, 3)
TARS = 4  # which clip-retrieval shares among its processes that read
SHARD_TILES = 128
BATCH = 32  # of rivals
RIVALS = ("clip-retrieval", "Daft", "Ray Data")
BARS = {"clip-retrieval": 1.2, "Daft": 1.0, "Ray Data": 1.0}
LEAST_COSINE = 0.9999


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", help="a captioned set")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--out")
    parser.add_argument("--architecture", default="ViT-S-32-alt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="how many times over")
    parser.add_argument("--clip-retrieval", help="a Python that has clip-retrieval")
    parser.add_argument("--daft", help="a Python that has Daft, torch and open_clip")
    parser.add_argument("--only", nargs="+", default=["urbancross", *RIVALS])
    parser.add_argument("--settings", default="{}", help="other settings of rivals than the best, as JSON by name")
    parser.add_argument("--one", nargs=4, metavar=("NAME", "MODEL", "TILES", "VECTORS"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    settings = {name: kept | json.loads(told.settings).get(name, {}) for name, kept in SETTINGS.items()}
    if told.one:
        name, model, tiles, vectors = told.one
        ONE[name](model, Path(tiles), Path(vectors), settings[name])
        return
    home = Path(told.out).absolute()
    weights = prepare(home, Path(told.source).absolute(), told.split, told.architecture)
    pythons = {"clip-retrieval": told.clip_retrieval, "Daft": told.daft}
    contenders = [name for name in told.only if pythons.get(name, sys.executable)]
    seconds = {name: {times: list[float]() for times in told.sizes} for name in contenders}
    for number in range(told.rounds):
        for times in told.sizes:
            for name in contenders if number % 2 else contenders[::-1]:
                made = home / "made" / f"{name.replace(' ', '-')}-{times}"
                command, environment = command_of(name, home, weights, times, made, pythons, settings[name])
                seconds[name][times].append(timed(command, environment, home / "log.txt"))
            print(f"round {number}, {times}: { ({n: round(s[times][-1], 2) for n, s in seconds.items()}) }", flush=True)
        (home / "seconds.json").write_text(json.dumps({"settings": settings, "seconds": seconds}, indent=1))
    vectors = {name: vectors_of(name, home) for name in contenders}
    found = cosines(vectors) if "urbancross" in vectors else {}
    result = {"settings": settings, "seconds": seconds, "cosines": found, "tiles": len(vectors[contenders[0]])}
    (home / "result.json").write_text(json.dumps(result, indent=1))
    if found:
        show(result)


# What a contender is asked with.

# Yet to be tried one against the other, but for the batch, at which open_clip is quickest; threads: torch's, a process.
SETTINGS: dict[str, dict[str, Any]] = {
    "urbancross": {"flags": [], "threads": 1},
    "clip-retrieval": {"batch_size": BATCH, "num_prepro_workers": 2, "threads": 2},
    "Daft": {"batch": BATCH, "replicas": 2, "threads": 1, "processes": True},
    "Ray Data": {"batch": BATCH, "actors": 2, "threads": 1},
}


def command_of(
    name: str, home: Path, weights: Path, times: int, made: Path, pythons: dict[str, str], told: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """The command line of a contender and its environment; what it made the last time is taken away."""
    model, archive = f"{weights.stem}/{weights}", home / f"archive-{times}"
    shutil.rmtree(made, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(told["threads"]), "HF_HUB_OFFLINE": "1"}
    if name == "urbancross":
        shutil.rmtree(archive / "embeddings@timed", ignore_errors=True)
        flags = ["--archive", str(archive), "--checkpoint", model, "--name", "timed", *told["flags"]]
        return [sys.executable, "-m", "urbancross.cli", "embed", *flags], environment
    if name == "clip-retrieval":
        tars = str(home / f"tiles-{times}-{{0..{TARS - 1}}}.tar")
        flags = ["--input_dataset", tars, "--output_folder", str(made)]
        flags += ["--input_format", "webdataset", "--clip_model", f"open_clip:{model}", "--enable_text", "False"]
        flags += ["--batch_size", str(told["batch_size"]), "--num_prepro_workers", str(told["num_prepro_workers"])]
        return [str(Path(pythons[name]).with_name("clip-retrieval")), "inference", *flags], environment
    command = [pythons.get(name, sys.executable), __file__, "--one", name, model, str(archive / "tiles"), str(made)]
    return [*command, "--settings", json.dumps({name: told})], environment


def timed(command: list[str], environment: dict[str, str], log: Path) -> float:
    os.sync()
    with log.open("ab") as out:
        began = time.perf_counter()
        ended = subprocess.run(command, stdout=out, stderr=out, env=environment)
        took = time.perf_counter() - began
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}; see {log}")
    return took


class Embedder:
    """What the UDFs of Daft and Ray Data do: a resident model; a batch of encoded tiles to unit vectors."""

    def __init__(self, model: str, threads: int) -> None:
        import open_clip
        import torch

        torch.set_num_threads(threads)
        architecture, _, file = model.partition("/")
        self.model = open_clip.create_model(architecture, pretrained=file).eval()
        told = open_clip.get_model_preprocess_cfg(self.model)
        self.side = told["size"] if isinstance(told["size"], int) else told["size"][0]
        self.mean, self.std = (torch.tensor(told[name])[:, None, None] for name in ("mean", "std"))

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        import torch

        pixels = torch.from_numpy(np.stack([self.decode(image) for image in images])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return self.model.encode_image((pixels.float() / 255 - self.mean) / self.std, normalize=True).numpy()

    def decode(self, data: bytes) -> np.ndarray:
        from PIL import Image, ImageOps

        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (self.side, self.side):
            image = ImageOps.fit(image, (self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(image)


def with_daft(model: str, tiles: Path, vectors: Path, told: dict[str, Any]) -> None:
    import daft

    @daft.cls(max_concurrency=told["replicas"], use_process=told["processes"])
    class Tiles:
        def __init__(self) -> None:
            self.embedder = Embedder(model, told["threads"])

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=told["batch"])
        def embed(self, images: daft.Series) -> Any:
            import pyarrow as pa

            found = self.embedder.embed(images.to_pylist())
            return pa.FixedSizeListArray.from_arrays(found.ravel(), found.shape[1]).cast(pa.list_(pa.float32()))

    rows = daft.read_parquet(str(tiles / "*.parquet")).select("tile_id", "image")
    rows.select("tile_id", Tiles().embed(rows["image"]).alias("vector")).write_parquet(str(vectors))


class RayTiles:
    def __init__(self, model: str, threads: int) -> None:
        self.embedder = Embedder(model, threads)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        found = self.embedder.embed(batch["image"].to_pylist())
        return pa.table(
            {"tile_id": batch["tile_id"], "vector": pa.FixedSizeListArray.from_arrays(found.ravel(), found.shape[1])}
        )


def with_ray(model: str, tiles: Path, vectors: Path, told: dict[str, Any]) -> None:
    import ray

    ray.init(address="local", num_cpus=(os.cpu_count() or 1) + 2, include_dashboard=False, log_to_driver=False)
    rows = ray.data.read_parquet(sorted(map(str, tiles.glob("*.parquet"))), columns=["tile_id", "image"])
    rows.map_batches(
        RayTiles,
        fn_constructor_args=(model, told["threads"]),
        batch_size=told["batch"],
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=told["actors"]),
        num_cpus=1,
    ).write_parquet(str(vectors))


ONE = {"Daft": with_daft, "Ray Data": with_ray}


# Tiles, weights, and what was made of them.


def prepare(home: Path, source: Path, split: str, architecture: str) -> Path:
    """The file of weights; archives and tars of the tiles, of each size."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    home.mkdir(parents=True, exist_ok=True)
    weights = home / f"{architecture}.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(open_clip.create_model(architecture, pretrained=None).state_dict(), weights)
    rows = [json.loads(line) for line in (source / "captions.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == split]
    for times in SIZES:
        if (home / f"archive-{times}" / "tiles").is_dir():
            continue
        folder, told = home / f"set-{times}", []
        (folder / "images").mkdir(parents=True)
        for copy in range(times):
            for row in rows:
                name = f"{copy}-{Path(row['image']).name}"
                shutil.copy(source / row["image"], folder / "images" / name)
                told.append({**row, "image": f"images/{name}"})
        for number in range(TARS):
            with tarfile.open(home / f"tiles-{times}-{number}.tar", "w") as tar:
                for row in told[number::TARS]:
                    tar.add(folder / row["image"], Path(row["image"]).name)
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        flags = ["--source", str(folder), "--archive", str(home / f"archive-{times}"), "--domain", "benchmark"]
        flags += ["--shard-tiles", str(SHARD_TILES)]
        subprocess.run([sys.executable, "-m", "urbancross.cli", "ingest", *flags], check=True)
    return weights


def vectors_of(name: str, home: Path) -> dict[str, np.ndarray]:
    """What was made of the tiles once, by the names of their files."""
    import pyarrow.parquet as pq

    if name == "clip-retrieval":
        folder = home / "made" / "clip-retrieval-1"
        found = np.concatenate([np.load(file) for file in sorted(folder.glob("img_emb/*.npy"))])
        keys = pq.read_table(folder / "metadata")["image_path"].to_pylist()
    else:
        ours = home / "archive-1" / "embeddings@timed"
        folder = ours if name == "urbancross" else home / "made" / f"{name.replace(' ', '-')}-1"
        rows = pq.read_table(folder, columns=["tile_id", "vector"])
        keys, found = rows["tile_id"].to_pylist(), np.stack(rows["vector"].to_numpy(zero_copy_only=False))
    return dict(zip([Path(key).stem for key in keys], found.astype(np.float64), strict=True))


def cosines(vectors: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """The least cosine of a rival's vector with ours; also about our mean, since random weights see all tiles alike."""
    ours = vectors["urbancross"]
    mean, found = np.mean(list(ours.values()), axis=0), {}
    for name, theirs in vectors.items():
        assert theirs.keys() == ours.keys(), f"{name} made {len(theirs)} of {len(ours)} tiles"
        plain = min(cosine(theirs[key], vector) for key, vector in ours.items())
        centred = min(cosine(theirs[key] - mean, vector - mean) for key, vector in ours.items())
        found[name] = {"least": plain, "least about the mean": centred}
        assert plain >= LEAST_COSINE, f"{name}: {plain}"
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def show(result: dict[str, Any]) -> None:
    tiles, ours = result["tiles"], result["seconds"]["urbancross"]
    heads = [head for times in ours for head in (f"{times * tiles:,} tiles, s (least to most)", "of ours")]
    slopes = len(ours) > 1
    heads = ["contender", *heads, *(["ms a tile", "of ours"] if slopes else []), "bar", "cosine", "about the mean"]
    print_row(heads)
    print_row(["---"] * len(heads))
    for name, seconds in result["seconds"].items():
        cells = [cell for times in ours for cell in (spread(seconds[times]), ratio(seconds[times], ours[times]))]
        if slopes:
            cells += [f"{slope(seconds, tiles):.2f}", f"{slope(seconds, tiles) / slope(ours, tiles):.2f}"]
        cosine = [f"{value:.6f}" for value in result["cosines"][name].values()]
        print_row([name, *cells, str(BARS.get(name, "")), *cosine])


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def ratio(theirs: list[float], ours: list[float]) -> str:
    """The median over rounds of their time by ours."""
    return f"{statistics.median(a / b for a, b in zip(theirs, ours, strict=True)):.2f}"


def slope(seconds: dict[int, list[float]], tiles: int) -> float:
    """Milliseconds a tile, without what a process takes to start and to end."""
    few, *_, many = seconds
    return statistics.median(
        1000 * (b - a) / ((many - few) * tiles) for a, b in zip(seconds[few], seconds[many], strict=True)
    )


if __name__ == "__main__":
    main()
