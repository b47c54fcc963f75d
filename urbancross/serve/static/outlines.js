/* Segments of a tile, drawn over its picture; asked for a few at a time, when their tile comes into view. */
(function (house) {
  "use strict";

  const AT_ONCE = 2;

  /** An SVG that lies over a picture, or null where there is no segment. `best`: rank of the one that fits best. */
  function drawn(told, best, fit) {
    if (!told.segments.length) return null;
    const [w, h] = told.size;
    const paths = [...told.segments]
      .sort((a, b) => (a.rank === best) - (b.rank === best)) // the best is drawn over the others
      .map((segment) =>
        house.svg("path", {
          d: segment.outline.map((ring) => `M${ring.map((point) => point.join(" ")).join("L")}Z`).join(""),
          class: `segment${segment.rank === best ? " best" : ""}`,
          "data-rank": segment.rank,
        }),
      );
    const of = { viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: `xMidYMid ${fit}`, class: "outlines", "aria-hidden": "true" };
    return house.svg("svg", of, paths);
  }

  /** A source's segments, each tile asked once, and no more than a few at the same time. */
  house.outlines = function (source) {
    const known = new Map();
    const waiting = [];
    let busy = 0;

    function next() {
      while (busy < AT_ONCE && waiting.length) {
        const { number, model, key, resolve } = waiting.shift();
        busy += 1;
        source
          .segments(number, model)
          .catch(() => {
            known.delete(key); // another look may fare better
            return { size: [1, 1], segments: [] };
          })
          .then((told) => {
            busy -= 1;
            resolve(told);
            next();
          });
      }
    }

    /** Of a hit: those of the model that found it. */
    function of({ number, model }, isUrgent) {
      const key = `${model} ${number}`;
      if (!known.has(key)) {
        known.set(
          key,
          new Promise((resolve) => {
            waiting[isUrgent ? "unshift" : "push"]({ number, model, key, resolve });
            next();
          }),
        );
      }
      return known.get(key);
    }

    return { of, drawn };
  };
})((window.urbancross = window.urbancross || {}));
