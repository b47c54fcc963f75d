/* What is asked: a plain value, the part of the address after #, and the chips that say it. */
(function (house) {
  "use strict";

  const LISTS = ["plus", "minus", "like", "unlike", "pictures", "tags"];
  const TEXTS = ["text", "since", "until", "domain", "split", "model", "beside"];
  const TOP = 40;
  const AREA_CHARS = 6000; // of a polygon that still goes into the address
  const LARGE = "large"; // what stands there for another

  function nothing() {
    const asked = { bbox: null, area: null, segment_weight: 0, top: TOP };
    for (const name of LISTS) asked[name] = [];
    for (const name of TEXTS) asked[name] = "";
    return asked;
  }

  /** Whether there is anything to look for; filters alone, or what is not wanted, are not enough. */
  function wantsAnything(asked) {
    return Boolean(asked.text || asked.plus.length || asked.like.length || asked.pictures.length);
  }

  /** The address of a question, and of the tile that is open. */
  function hashOf(asked, tile) {
    const told = new URLSearchParams();
    for (const name of TEXTS) if (asked[name]) told.set(name, asked[name]);
    for (const name of LISTS) for (const value of asked[name]) told.append(name, value);
    if (asked.bbox) told.set("bbox", asked.bbox.join(","));
    if (asked.area) {
      const text = JSON.stringify(asked.area);
      told.set("area", text.length <= AREA_CHARS ? text : LARGE);
    }
    if (asked.segment_weight) told.set("segments", asked.segment_weight);
    if (asked.top !== TOP) told.set("top", asked.top);
    if (tile !== null && tile !== undefined) told.set("tile", tile);
    return told.size ? `#${told}` : "#";
  }

  /** Back again; what makes no sense is left out. `lost`: of which place the address does not tell, and why. */
  function ofHash(hash) {
    const told = new URLSearchParams(hash.replace(/^#/, ""));
    const asked = nothing();
    for (const name of TEXTS) asked[name] = told.get(name) || "";
    for (const name of LISTS) asked[name] = told.getAll(name).filter(Boolean);
    for (const name of ["like", "unlike"]) asked[name] = asked[name].map(Number).filter(Number.isInteger);
    asked.bbox = boxOf(told.get("bbox") || "");
    let lost = null;
    if (told.has("bbox") && !asked.bbox) {
      lost = { name: "bbox", why: `no box: ${house.inShort(told.get("bbox"), 60)}; want west,south,east,north in degrees` };
    }
    const area = told.get("area");
    if (area === LARGE) lost = { name: "area", why: "the polygon was too large for the address; load its file again" };
    else if (area) {
      try {
        asked.area = house.polygonFrom(area, "the address");
      } catch (error) {
        lost = { name: "area", why: error.message };
      }
    }
    asked.segment_weight = Math.min(Math.max(Number(told.get("segments")) || 0, 0), 1);
    asked.top = Math.min(Math.max(Math.trunc(Number(told.get("top"))) || TOP, 1), 200);
    const tile = told.has("tile") ? Number(told.get("tile")) : null;
    return { asked, tile: Number.isInteger(tile) ? tile : null, lost };
  }

  /** `west,south,east,north` as numbers; null where it is not that. */
  function boxOf(text) {
    const found = text.split(/[\s,;]+/).filter(Boolean).map(Number);
    const [west, south, east, north] = found;
    const fits = found.length === 4 && found.every(Number.isFinite) && south < north && west !== east;
    return fits && Math.max(Math.abs(west), Math.abs(east)) <= 180 && south >= -90 && north <= 90 ? found : null;
  }

  /** The body of a search, by one model. */
  function bodyOf(asked, model) {
    const body = { top: asked.top };
    for (const name of [...LISTS, "text", "since", "until", "domain", "split", "bbox", "area", "segment_weight"]) {
      const value = asked[name];
      if (Array.isArray(value) ? value.length : value) body[name] = value;
    }
    if (model) body.model = model;
    return body;
  }

  /** Everything that is asked beside the typed text, each with the question that lacks it. */
  function chipsOf(asked) {
    const chips = [];
    const without = (name, i) => ({ ...asked, [name]: asked[name].filter((_, k) => k !== i) });
    const each = (name, kind, words) =>
      asked[name].forEach((value, i) => chips.push({ name, value, kind, words: words(value), left: without(name, i) }));
    each("plus", "more", (text) => `and ${text}`);
    each("pictures", "more", () => "like your picture");
    each("like", "more", (tile) => `like tile ${tile}`);
    each("minus", "less", (text) => `not ${text}`);
    each("unlike", "less", (tile) => `unlike tile ${tile}`);
    each("tags", "only", (tag) => tag);
    const one = (name, words, bare) => {
      if (asked[name]) chips.push({ name, kind: "only", words, left: { ...asked, [name]: bare } });
    };
    one("bbox", "within the box", null);
    one("area", "within the polygon", null);
    one("since", `from ${asked.since}`, "");
    one("until", `until ${asked.until}`, "");
    one("domain", `domain ${asked.domain}`, "");
    one("split", `split ${asked.split}`, "");
    one("segment_weight", `segments count ${Math.round(100 * asked.segment_weight)} %`, 0);
    return chips;
  }

  /** More or less like a tile: taken away again where it is said twice, and never both. */
  function withTile(asked, name, tile) {
    const other = name === "like" ? "unlike" : "like";
    const said = asked[name].includes(tile);
    return {
      ...asked,
      [name]: said ? asked[name].filter((one) => one !== tile) : [...asked[name], tile],
      [other]: asked[other].filter((one) => one !== tile),
    };
  }

  house.asked = { nothing, wantsAnything, hashOf, ofHash, boxOf, bodyOf, chipsOf, withTile };
})((window.urbancross = window.urbancross || {}));
