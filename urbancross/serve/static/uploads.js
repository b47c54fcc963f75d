/* Files that come to the page: a picture to search by, a polygon to search in; chosen, dropped or pasted. */
(function (house) {
  "use strict";

  const isPolygon = (file) => /json$/i.test(file.type) || /\.(geo)?json$/i.test(file.name || "");
  const isPicture = (file) => /^image\//.test(file.type);

  /** @param {{picture: function, polygon: function, wrong: function}} on */
  house.uploads = function (on) {
    function take(file) {
      if (isPolygon(file)) on.polygon(file);
      else if (isPicture(file)) on.picture(file);
      else on.wrong(`${file.name || "this file"}: want a picture (JPEG, PNG, WebP) or polygons (GeoJSON)`);
    }

    const hasFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    const lit = (isOver) => document.body.classList.toggle("dropping", isOver);
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      lit(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && lit(false));
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      lit(false);
      if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData ? event.clipboardData.files : [])].find(isPicture);
      if (!file) return;
      event.preventDefault();
      take(file);
    });
  };

  /**
   * The geometry of GeoJSON, without whatever else it says.
   *
   * @throws {Error} with one line, where there is no polygon in it.
   */
  house.polygonFrom = function (text, name) {
    let told;
    try {
      told = JSON.parse(text);
    } catch {
      throw new Error(`${name}: no GeoJSON; want a Polygon, a MultiPolygon, or features of these`);
    }
    const found = [];
    const listed = (value) => (Array.isArray(value) ? value : [value]);
    const walk = (one, depth) => {
      if (!one || typeof one !== "object" || depth > 8) return;
      if (one.type === "Polygon") found.push(one.coordinates);
      else if (one.type === "MultiPolygon") found.push(...listed(one.coordinates));
      else if (one.type === "Feature") walk(one.geometry, depth + 1);
      else if (one.type === "FeatureCollection") listed(one.features).forEach((feature) => walk(feature, depth + 1));
    };
    walk(told, 0);
    const isAt = (at) => Array.isArray(at) && at.length >= 2 && at.slice(0, 2).every(Number.isFinite);
    const isRing = (ring) => Array.isArray(ring) && ring.length >= 4 && ring.every(isAt);
    if (!found.length || !found.every((rings) => Array.isArray(rings) && rings.length && rings.every(isRing))) {
      throw new Error(`${name}: no polygon in it; want a Polygon, a MultiPolygon, or features of these`);
    }
    const plain = found.map((rings) => rings.map((ring) => ring.map((at) => [at[0], at[1]])));
    return plain.length === 1 ? { type: "Polygon", coordinates: plain[0] } : { type: "MultiPolygon", coordinates: plain };
  };

  house.polygonOf = async (file) => house.polygonFrom(await file.text(), file.name);
})((window.urbancross = window.urbancross || {}));
