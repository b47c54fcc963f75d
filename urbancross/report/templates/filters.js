/* Which tiles are asked, as `urbancross search` has it: place, time, domain, split, tags. */
(function (house) {
  "use strict";

  /** What a time such as 2024, 2024-05 or 2024-05-17 spans, in milliseconds; one line where it is none. */
  function spanOf(text) {
    const date = /^(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?$/.exec(text);
    if (!date) {
      const at = Date.parse(/[zZ]|[+-]\d\d:?\d\d$/.test(text) ? text : `${text}Z`);
      if (Number.isNaN(at)) throw new Error(`${text}: want a time such as 2024, 2024-05 or 2024-05-17`);
      return [at, at];
    }
    const [year, month, day] = date.slice(1).map((part) => (part ? Number(part) : null));
    if (month > 12 || month === 0 || day === 0 || day > 31) throw new Error(`${text}: there is no such day`);
    const first = Date.UTC(year, (month || 1) - 1, day || 1);
    const after = day ? first + 86400000 : Date.UTC(month ? year : year + 1, month || 0, 1);
    return [first, after - 1];
  }

  /** Whether two boxes meet; west > east lies across the antimeridian. */
  function meets(a, b) {
    if (a[1] > b[3] || a[3] < b[1]) return false;
    const parts = (box) => (box[0] <= box[2] ? [[box[0], box[2]]] : [[box[0], 180], [-180, box[2]]]);
    return parts(a).some(([w, e]) => parts(b).some(([from, to]) => w <= to && e >= from));
  }

  /** Whether a box meets a polygon of GeoJSON. */
  function inPolygons(box, polygons) {
    if (box[0] > box[2]) {
      return inPolygons([box[0], box[1], 180, box[3]], polygons) || inPolygons([-180, box[1], box[2], box[3]], polygons);
    }
    const corners = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]];
    return polygons.some((rings) => {
      if (rings.some((ring) => ring.some((at) => at[0] >= box[0] && at[0] <= box[2] && at[1] >= box[1] && at[1] <= box[3]))) return true;
      if (inRings(corners[0], rings)) return true;
      const sides = corners.map((from, i) => [from, corners[(i + 1) % 4]]);
      return rings.some((ring) => ring.some((at, i) => i > 0 && sides.some(([from, to]) => cross(ring[i - 1], at, from, to))));
    });
  }

  function inRings([x, y], rings) {
    let inside = false;
    for (const ring of rings) {
      for (let i = 0, j = ring.length - 1; i < ring.length; j = i, i += 1) {
        const [[ax, ay], [bx, by]] = [ring[i], ring[j]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
      }
    }
    return inside;
  }

  function cross(a, b, c, d) {
    const side = (p, q, r) => Math.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]));
    return side(a, b, c) !== side(a, b, d) && side(c, d, a) !== side(c, d, b);
  }

  /**
   * Which of the tiles a question is about: `[count]` of 0 and 1.
   *
   * @param {object} tiles columns, see local.js.
   */
  house.allowed = function (tiles, asked) {
    const keep = new Uint8Array(tiles.count).fill(1);
    const leave = (fits) => {
      for (let row = 0; row < keep.length; row += 1) if (keep[row] && !fits(row)) keep[row] = 0;
    };
    for (const [name, column] of [["domain", tiles.domains], ["split", tiles.splits]]) {
      if (!asked[name]) continue;
      const wanted = column.values.indexOf(asked[name]) + 1;
      leave((row) => wanted > 0 && column.at[row] === wanted);
    }
    const spans = tiles.times.spans;
    const fitsTime = (fits) => leave((row) => tiles.times.at[row] > 0 && fits(spans[tiles.times.at[row] - 1]));
    if (asked.since) {
      const [from] = spanOf(asked.since);
      fitsTime((span) => span[1] !== null && span[1] >= from);
    }
    if (asked.until) {
      const [, to] = spanOf(asked.until);
      fitsTime((span) => span[0] !== null && span[0] <= to);
    }
    for (const tag of asked.tags || []) {
      const fits = (value) => (tag.includes("=") ? value === tag : value.startsWith(`${tag}=`));
      const wanted = new Set(tiles.tags.values.flatMap((value, i) => (fits(value) ? [i] : [])));
      leave((row) => tiles.tags.of(row).some((i) => wanted.has(i)));
    }
    const placed = (fits) => leave((row) => {
      const box = tiles.boundsOf(row);
      return box !== null && fits(box);
    });
    if (asked.bbox) placed((box) => meets(box, asked.bbox));
    if (asked.area) {
      const polygons = asked.area.type === "Polygon" ? [asked.area.coordinates] : asked.area.coordinates;
      const points = polygons.flatMap((rings) => rings[0]);
      const [xs, ys] = [points.map((at) => at[0]), points.map((at) => at[1])];
      const least = (values) => values.reduce((a, b) => Math.min(a, b));
      const most = (values) => values.reduce((a, b) => Math.max(a, b));
      const around = [least(xs), least(ys), most(xs), most(ys)];
      placed((box) => meets(box, around) && inPolygons(box, polygons));
    }
    return keep;
  };

  Object.assign(house.allowed, { spanOf, meets, inPolygons });
})((window.urbancross = window.urbancross || {}));
