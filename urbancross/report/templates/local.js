/* Where answers come from: this file itself. The same functions as `house.remote()`; tiles are in few coordinates. */
(function (house) {
  "use strict";

  const DEGREE = 1e7;
  const NO_PLACE = -(2 ** 31);
  const SHARE = 2 ** 16 - 1; // of a tile's bounds, all of them
  const UPRIGHT = [0, 0, SHARE, 0, SHARE, SHARE, 0, SHARE];

  function held(id) {
    const element = document.getElementById(id);
    const told = element && JSON.parse(element.textContent);
    if (element) element.remove(); // its text is not wanted a second time
    return told;
  }

  function bytes(text) {
    const told = window.atob(text);
    const found = new Uint8Array(told.length);
    for (let i = 0; i < told.length; i += 1) found[i] = told.charCodeAt(i);
    return found.buffer;
  }

  const numbers = (of) => new { 8: Uint8Array, 16: Uint16Array, 32: Uint32Array }[of.bits](bytes(of.at));
  const column = (of) => ({ ...of, at: numbers(of) });

  /** Lists of values, `of(row)` the places of a row's in `values`. */
  function lists(told) {
    const [flat, counts] = [numbers(told), numbers(told.counts)];
    const ends = new Uint32Array(counts.length + 1);
    counts.forEach((count, i) => (ends[i + 1] = ends[i] + count));
    return { values: told.values, of: (row) => [...flat.subarray(ends[row], ends[row + 1])] };
  }

  function tilesOf(told) {
    const bounds = new Int32Array(bytes(told.bounds));
    const shares = told.corners && new Uint16Array(bytes(told.corners));
    const boundsOf = (row) => (bounds[4 * row] === NO_PLACE ? null : [0, 1, 2, 3].map((i) => bounds[4 * row + i] / DEGREE));

    /** Corners of a picture, as `serve` tells them; null: it stands upright in its bounds. */
    function cornersOf(row) {
      const own = shares && shares.subarray(8 * row, 8 * row + 8);
      if (!own || !boundsOf(row) || own.every((share, i) => share === UPRIGHT[i])) return null;
      const [west, south, east, north] = boundsOf(row);
      const width = (west <= east ? east : east + 360) - west;
      return [0, 2, 4, 6].map((i) => [west + (own[i] / SHARE) * width, north - (own[i + 1] / SHARE) * (north - south)]);
    }

    return {
      count: told.count,
      ids: told.ids,
      numbers: new Uint32Array(bytes(told.numbers)),
      times: column(told.times),
      gsd: column(told.gsd),
      domains: column(told.domains),
      splits: column(told.splits),
      tags: lists(told.tags),
      parts: lists(told.parts),
      boundsOf,
      cornersOf,
    };
  }

  /** Vectors in d coordinates: int8 codes times a scale. */
  function vectorsOf(codes, scale) {
    const [at, by] = [new Int8Array(bytes(codes)), new Float32Array(bytes(scale))];
    const d = by.length;
    return {
      d,
      codes: at,
      scale: by,
      of: (row) => Float32Array.from(by, (factor, i) => factor * at[row * d + i]),
    };
  }

  /** A vector in few coordinates, and the squared length of what was left out of it. */
  const term = (vector, length, metric) => ({ vector, rest: Math.max(0, length ** 2 - squared(vector, metric)) });

  /** The squared length of what coordinates of a query stand for. */
  function squared(vector, metric) {
    const d = vector.length;
    let found = 0;
    for (let i = 0; i < d; i += 1) for (let k = 0; k < d; k += 1) found += vector[i] * metric[i * d + k] * vector[k];
    return Math.max(found, 0);
  }

  /** The sum of weighed terms as a unit vector; what was left out of them is taken for unrelated. */
  function sum(terms, metric) {
    const vector = new Float32Array(terms[0].of.vector.length);
    let rest = 0;
    for (const { weight, of } of terms) {
      of.vector.forEach((x, i) => (vector[i] += weight * x));
      rest += weight ** 2 * of.rest;
    }
    const length = Math.sqrt(squared(vector, metric) + rest) || 1;
    return { vector: vector.map((x) => x / length), rest: rest / length ** 2 };
  }

  function modelOf(told, queries) {
    const tiles = vectorsOf(told.tiles, told.tiles_scale);
    const phrases = vectorsOf(told.phrases, told.phrases_scale);
    const [turn, metric, exact] = [told.as_query, told.metric, told.queries].map((text) => new Float32Array(bytes(text)));
    const d = told.directions;
    return {
      tiles,
      metric,
      nearness(a, b) {
        let found = 0;
        for (let i = 0; i < d; i += 1) for (let k = 0; k < d; k += 1) found += a[i] * metric[i * d + k] * b[k];
        return found;
      },
      phrase: (i) => phrases.of(i),
      phraseTerm: (i) => term(phrases.of(i), 1, metric),
      query(text) {
        const i = queries.indexOf(text);
        return i < 0 ? null : term(exact.slice(i * d, (i + 1) * d), 1, metric);
      },
      tileTerm(row) {
        const tile = tiles.of(row);
        const asked = Float32Array.from({ length: d }, (_, i) => tile.reduce((all, x, k) => all + turn[i * d + k] * x, 0));
        return term(asked, told.query_length, metric);
      },
      scores(query) {
        const folded = Float32Array.from(query, (x, i) => x * tiles.scale[i]);
        const found = new Float32Array(tiles.codes.length / d);
        for (let row = 0, at = 0; row < found.length; row += 1) {
          let score = 0;
          for (let i = 0; i < d; i += 1, at += 1) score += folded[i] * tiles.codes[at];
          found[row] = score;
        }
        return found;
      },
    };
  }

  /** The rows with the best scores, best first. */
  function best(scores, keep, top) {
    const rows = [];
    for (let row = 0; row < scores.length; row += 1) if (keep[row]) rows.push(row);
    if (rows.length > 4 * top) {
      const sorted = Float32Array.from(rows, (row) => scores[row]).sort();
      const least = sorted[sorted.length - top];
      return { compared: rows.length, rows: rows.filter((row) => scores[row] >= least).sort((a, b) => scores[b] - scores[a] || a - b).slice(0, top) };
    }
    return { compared: rows.length, rows: rows.sort((a, b) => scores[b] - scores[a] || a - b).slice(0, top) };
  }

  house.local = function () {
    const about = held("archive");
    const tiles = tilesOf(held("tiles"));
    const models = new Map(about.models.map((key, nth) => [key, modelOf(held(`model-${nth}`), about.queries)]));
    const match = house.phrasebook(tiles.parts.values.slice(0, about.phrases), about.stop);
    const rowOf = new Map([...tiles.numbers].map((number, row) => [number, row]));
    let jpegs = null; // row -> base64, read when the first is wanted

    function pictures() {
      if (!jpegs) {
        const told = held("pictures");
        jpegs = new Map(told.rows.map((row, i) => [row, told.jpegs[i]]));
      }
      return jpegs;
    }

    /** A text in few coordinates, and what it was taken for. */
    function textTerm(model, text) {
      const exact = model.query(text);
      if (exact) return { of: exact, said: [], missing: [] };
      const { groups, missing } = match(text);
      if (!groups.length) throw new Error(`no caption here says “${house.inShort(text, 80)}”; try other words`);
      const means = groups.map(({ weight, phrases }) => ({ weight, of: sum(phrases.map((i) => ({ weight: 1, of: model.phraseTerm(i) })), model.metric) }));
      return { of: sum(means, model.metric), said: groups.flatMap((group) => group.phrases), missing };
    }

    function rowsOf(named) {
      return (named || []).map((number) => {
        if (!rowOf.has(number)) throw new Error(`this page has no tile ${number}`);
        return rowOf.get(number);
      });
    }

    function queryOf(model, asked) {
      if ((asked.pictures || []).length) throw new Error("a picture needs the model: start urbancross serve");
      const texts = [...(asked.text ? [asked.text] : []), ...(asked.plus || [])].map((text) => textTerm(model, text));
      const against = (asked.minus || []).map((text) => textTerm(model, text));
      const like = rowsOf(asked.like).map((row) => model.tileTerm(row));
      const unlike = rowsOf(asked.unlike).map((row) => model.tileTerm(row));
      if (!texts.length && !like.length) throw new Error("nothing to look for: give a text or a tile");
      const terms = [
        ...[...texts.map((text) => text.of), ...like].map((of) => ({ weight: 1, of })),
        ...[...against.map((text) => text.of), ...unlike].map((of) => ({ weight: -0.5, of })),
      ];
      return { vector: sum(terms, model.metric).vector, texts: [...texts, ...against] };
    }

    function noteOf(texts) {
      const said = [...new Set(texts.flatMap((text) => text.said))];
      const missing = [...new Set(texts.flatMap((text) => text.missing))];
      const quoted = (words) => words.map((text) => `“${house.inShort(text, 60)}”`).join(", ");
      const more = said.length > 4 ? ` and ${said.length - 4} more` : "";
      const by = said.length ? `Went by ${quoted(said.slice(0, 4).map((i) => tiles.parts.values[i]))}${more}.` : "";
      return [by, missing.length ? `No caption here says ${quoted(missing)}.` : ""].filter(Boolean).join(" ");
    }

    function hitOf(model, vector, row, score, rank) {
      const parts = tiles.parts.of(row);
      const [first] = parts
        .map((i) => [i, i < about.phrases ? model.nearness(model.phrase(i), vector) : -2])
        .sort((a, b) => b[1] - a[1]);
      const told = (from) => (from.at[row] ? from.values[from.at[row] - 1] : null);
      return {
        rank, score, number: tiles.numbers[row], tile_id: tiles.ids[row], bounds: tiles.boundsOf(row),
        corners: tiles.cornersOf(row), where: null,
        captions: parts.map((i) => tiles.parts.values[i]), phrase: first ? tiles.parts.values[first[0]] : null,
        tags: tiles.tags.of(row).map((i) => tiles.tags.values[i]), domain: told(tiles.domains), split: told(tiles.splits),
        datetime: told(tiles.times), gsd_m: told(tiles.gsd),
      };
    }

    function search(asked) {
      const began = performance.now();
      const model = models.get(asked.model) || models.values().next().value;
      const { vector, texts } = queryOf(model, asked);
      const scores = model.scores(vector);
      const found = best(scores, house.allowed(tiles, asked), asked.top);
      return {
        hits: found.rows.map((row, i) => hitOf(model, vector, row, scores[row], i + 1)),
        compared: found.compared,
        how: `in ${model.tiles.d} coordinates`,
        doubt: null,
        note: noteOf(texts),
        ms: performance.now() - began,
      };
    }

    return {
      formats: { geojson: "GeoJSON" },
      archive: async () => ({
        name: about.name,
        tiles: tiles.count,
        note: about.note,
        examples: about.queries,
        models: about.models.map((key) => ({ key, segments: false })),
        ...about.summary,
        limits: { top: 200 },
      }),
      places: async () => ({ cells: about.cells }),
      search: async (asked) => search(asked),
      picture(number) {
        const jpeg = pictures().get(rowOf.get(number));
        return jpeg ? `data:image/jpeg;base64,${jpeg}` : null;
      },
      segments: async () => ({ size: [1, 1], segments: [] }),
      async download(asked) {
        const told = ["tile_id", "rank", "score", "phrase", "captions", "tags", "domain", "split", "datetime", "gsd_m"];
        const features = search(asked).hits.map((hit) => ({
          type: "Feature",
          id: hit.tile_id,
          geometry: hit.bounds && shapeOf(hit),
          properties: Object.fromEntries(told.map((name) => [name, hit[name]])),
        }));
        return new Blob([JSON.stringify({ type: "FeatureCollection", features })], { type: "application/geo+json" });
      },
    };
  };

  /** What a tile covers, as GeoJSON: its corners, or its bounds; cut in two at the antimeridian. */
  function shapeOf({ bounds: [west, south, east, north], corners }) {
    const last = west <= east ? east : east + 360;
    const ring = counterclockwise(corners || [[west, south], [last, south], [last, north], [west, north]]);
    const closed = (part, by) => [[...part, part[0]].map(([lon, lat]) => [lon + by, lat])];
    if (last <= 180) return { type: "Polygon", coordinates: closed(ring, 0) };
    const parts = [closed(half(ring, -1), 0), closed(half(ring, 1), -360)];
    return { type: "MultiPolygon", coordinates: parts };
  }

  function counterclockwise(ring) {
    const twice = ring.reduce((sum, [x, y], i) => {
      const [u, v] = ring[(i + 1) % ring.length];
      return sum + x * v - u * y;
    }, 0);
    return twice < 0 ? [...ring].reverse() : ring;
  }

  /** The part of a convex ring on one side of 180 degrees: `side` -1 west of it, 1 east. */
  function half(ring, side) {
    return ring.flatMap(([x, y], i) => {
      const [u, v] = ring[(i + 1) % ring.length];
      const isIn = (lon) => side * (lon - 180) >= 0;
      const cut = isIn(x) === isIn(u) ? [] : [[180, y + ((180 - x) / (u - x)) * (v - y)]];
      return isIn(x) ? [[x, y], ...cut] : cut;
    });
  }
})((window.urbancross = window.urbancross || {}));
