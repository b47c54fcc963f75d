/* Elements made of plain values: what comes from an archive is only ever text. */
(function (house) {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";

  /** An element with attributes, listeners (`onclick: ...`) and children; null and false leave one out. */
  function el(tag, of, ...children) {
    return dressed(document.createElement(tag), of, children);
  }

  function svg(tag, of, ...children) {
    return dressed(document.createElementNS(SVG, tag), of, children);
  }

  function dressed(element, of, children) {
    for (const [name, value] of Object.entries(of || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  function byId(id) {
    return document.getElementById(id);
  }

  /** Put text into an element, and hide it where there is none. */
  function tell(element, text) {
    element.textContent = text || "";
    element.hidden = !text;
  }

  function counted(n, one, several) {
    return `${n.toLocaleString("en-GB")} ${n === 1 ? one : several}`;
  }

  function inShort(text, most) {
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  }

  /** `60.1841° N, 24.9012° E`: the middle of bounds, which may lie across the antimeridian. */
  function placeOf(bounds) {
    const [west, south, east, north] = bounds;
    let lon = (west + (west <= east ? east : east + 360)) / 2;
    if (lon > 180) lon -= 360;
    const lat = (south + north) / 2;
    return `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`;
  }

  function isCalm() {
    return window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  }

  /** Copy, or where the browser does not let us, select the element that holds the text. */
  async function copy(text, element) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      window.getSelection().selectAllChildren(element);
      return false;
    }
  }

  /** Hand a file to the browser's downloads. */
  function save(name, blob) {
    const href = URL.createObjectURL(blob);
    const link = el("a", { href, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    window.setTimeout(() => URL.revokeObjectURL(href), 10000);
  }

  Object.assign(house, { el, svg, byId, tell, counted, inShort, placeOf, isCalm, copy, save });
})((window.urbancross = window.urbancross || {}));
