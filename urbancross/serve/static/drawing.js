/* A box drawn over the map with mouse, pen or finger: press, pull, let go. */
(function (house) {
  "use strict";

  const LEAST_PX = 5; // a smaller box was a click

  /**
   * A sheet over the map that takes the pointer while a box is drawn.
   *
   * @param {L.Map} map
   * @param {(box: number[] | null) => void} done west, south, east, north; null: nothing was drawn.
   */
  house.drawing = function (map, done) {
    const sheet = house.el("div", { class: "sheet", "aria-hidden": "true" });
    const band = house.el("div", { class: "band" });
    sheet.append(band);
    let from = null;

    const here = (event) => {
      const frame = sheet.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    const spread = (to) => {
      band.style.left = `${Math.min(from[0], to[0])}px`;
      band.style.top = `${Math.min(from[1], to[1])}px`;
      band.style.width = `${Math.abs(from[0] - to[0])}px`;
      band.style.height = `${Math.abs(from[1] - to[1])}px`;
    };
    const stop = () => {
      from = null;
      sheet.remove();
    };

    sheet.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      sheet.setPointerCapture(event.pointerId);
      from = here(event);
      spread(from);
    });
    sheet.addEventListener("pointermove", (event) => from && spread(here(event)));
    sheet.addEventListener("pointercancel", () => {
      stop();
      done(null);
    });
    sheet.addEventListener("pointerup", (event) => {
      if (!from) return;
      const to = here(event);
      const isBox = Math.abs(to[0] - from[0]) >= LEAST_PX && Math.abs(to[1] - from[1]) >= LEAST_PX;
      const corners = [from, to].map((point) => map.containerPointToLatLng(point));
      stop();
      done(isBox ? boxOf(L.latLngBounds(corners)) : null);
    });

    return {
      get isOn() {
        return sheet.isConnected;
      },
      start() {
        for (const side of ["width", "height"]) band.style[side] = "0";
        map.getContainer().append(sheet);
      },
      stop,
    };
  };

  /** Bounds of Leaflet as west, south, east, north in degrees; null where they go around the globe. */
  function boxOf(bounds) {
    const [west, east] = [bounds.getWest(), bounds.getEast()];
    if (east - west >= 360) return null;
    const wrapped = (lon) => ((((lon + 180) % 360) + 360) % 360) - 180;
    const [south, north] = [Math.max(bounds.getSouth(), -90), Math.min(bounds.getNorth(), 90)];
    return [wrapped(west), south, wrapped(east), north].map((degrees) => Number(degrees.toFixed(6)));
  }

  house.boxOfBounds = boxOf;
})((window.urbancross = window.urbancross || {}));
