/* What lies under the tiles without any map server: land, and lines of longitude and latitude. */
(function (house) {
  "use strict";

  const STEPS = [30, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002];
  const APART_PX = 110; // that lines are apart, at least
  const LAND_TO = 8; // zoom past which so coarse a coast says nothing

  /** Land while one looks from afar: the globe once, and again beyond 180 degrees where the longitude `home` is near. */
  function addLand(map, home) {
    if (!house.land) return;
    map.createPane("land").style.zIndex = 200;
    const land = L.layerGroup();
    for (const by of Math.abs(home) > 90 ? [0, 360 * Math.sign(home)] : [0]) {
      const coordsToLatLng = ([lon, lat]) => L.latLng(lat, lon + by);
      L.geoJSON(house.land, { pane: "land", interactive: false, style: { className: "land" }, coordsToLatLng }).addTo(land);
    }
    const arrange = () => (map.getZoom() < LAND_TO ? land.addTo(map) : land.remove());
    map.on("zoomend", arrange);
    arrange();
  }

  /** Lines of longitude and latitude with their degrees, as many as fit the view. */
  function addGraticule(map) {
    map.createPane("graticule").style.zIndex = 210;
    const lines = L.layerGroup().addTo(map);
    const arrange = () => {
      lines.clearLayers();
      const view = map.getBounds();
      const perPx = (view.getEast() - view.getWest()) / Math.max(map.getSize().x, 1);
      const step = [...STEPS].reverse().find((one) => one >= perPx * APART_PX) || STEPS[0];
      const [south, north] = [Math.max(view.getSouth(), -85), Math.min(view.getNorth(), 85)];
      for (const lon of between(view.getWest(), view.getEast(), step)) {
        line(lines, [[south, lon], [north, lon]], [north, lon], degrees(lon, step, "E", "W"), "lon");
      }
      for (const lat of between(south, north, step)) {
        line(lines, [[lat, view.getWest()], [lat, view.getEast()]], [lat, view.getWest()], degrees(lat, step, "N", "S"), "lat");
      }
    };
    map.on("moveend resize", arrange);
    arrange();
  }

  function between(first, last, step) {
    const found = [];
    for (let k = Math.ceil(first / step); k * step <= last && found.length < 60; k += 1) found.push(k * step);
    return found;
  }

  function degrees(value, step, positive, negative) {
    const turned = positive === "E" ? ((((value + 180) % 360) + 360) % 360) - 180 : value;
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const told = Math.abs(turned).toFixed(digits);
    return `${told}°${Number(told) % 180 === 0 ? "" : turned > 0 ? positive : negative}`;
  }

  function line(group, points, at, text, kind) {
    L.polyline(points, { pane: "graticule", interactive: false, className: "graticule", weight: 1 }).addTo(group);
    const icon = L.divIcon({ html: house.el("span", {}, text), className: `degrees ${kind}`, iconSize: null });
    L.marker(at, { pane: "graticule", icon, interactive: false, keyboard: false }).addTo(group);
  }

  /** Where the archive's tiles lie: a dot a cell, the larger the more tiles. */
  function addPlaces(map, cells) {
    map.createPane("places").style.zIndex = 300;
    const renderer = L.canvas({ pane: "places" });
    const group = L.layerGroup().addTo(map);
    const draw = () => {
      group.clearLayers();
      const color = getComputedStyle(document.documentElement).getPropertyValue("--place").trim();
      for (const [lon, lat, count] of cells) {
        const of = { renderer, pane: "places", interactive: false, radius: 1.5 + Math.log10(count + 1), stroke: false };
        L.circleMarker([lat, lon], { ...of, fillColor: color, fillOpacity: 0.5 }).addTo(group);
      }
    };
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  house.base = { addLand, addGraticule, addPlaces };
})((window.urbancross = window.urbancross || {}));
