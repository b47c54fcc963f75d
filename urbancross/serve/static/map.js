/* The map: what was found, where it lies, and the place that is asked about. */
(function (house) {
  "use strict";

  const PICTURE_PX = 16; // a tile that is as wide on the map shows its picture
  const DOT_PX = 10; // one that is smaller is a dot
  const NEAREST = 17; // zoom that single tiles are shown at

  /**
   * @param {HTMLElement} element
   * @param {object} archive what the source told of it; it has bounds.
   * @param {object} source
   * @param {{activate: function, open: function, box: function}} on
   */
  house.map = function (element, archive, source, on) {
    const calm = house.isCalm();
    const map = L.map(element, {
      attributionControl: false, fadeAnimation: false, inertia: !calm, markerZoomAnimation: !calm, maxBoundsViscosity: 1,
      maxBounds: [[-88, -540], [88, 540]], maxZoom: 19, minZoom: 1, zoomAnimation: !calm, zoomControl: false, zoomSnap: 0.25,
    });
    let home = middleOf(archive.bounds); // the longitude about which all is drawn
    map.fitBounds(latLngs(archive.bounds), { padding: [16, 16], maxZoom: 13 });
    L.control.zoom({ position: "topright" }).addTo(map);
    L.control.scale({ imperial: false, position: "bottomright" }).addTo(map);
    house.base.addLand(map, home);
    house.base.addGraticule(map);
    source.places().then((told) => house.base.addPlaces(map, told.cells.map(([lon, ...of]) => [near(lon), ...of])), () => {});
    map.createPane("pictures").style.zIndex = 350;
    map.createPane("asked").style.zIndex = 380;
    const askedLayer = L.layerGroup().addTo(map);
    const hitLayer = L.layerGroup().addTo(map);
    const shown = new Map(); // number of a tile -> its shapes
    let active = null;
    const drawing = house.drawing(map, (box) => {
      element.classList.remove("drawing");
      on.box(box);
    });
    new ResizeObserver(() => map.invalidateSize({ pan: false })).observe(element);
    map.on("moveend zoomend", arrange);

    /** A longitude about the middle of what is looked at, so that what lies on both sides of 180 degrees lies together. */
    function near(lon) {
      return lon + 360 * Math.round((home - lon) / 360);
    }

    function latLngsNear(bounds) {
      const by = near(middleOf(bounds)) - middleOf(bounds);
      const [west, south, east, north] = bounds;
      return latLngs([west + by, south, (west <= east ? east : east + 360) + by, north]);
    }

    /** Shapes by how large tiles are on the map: a dot, an outline, or the picture itself. */
    function arrange() {
      for (const [number, tile] of shown) {
        const [a, b] = [tile.bounds.getNorthWest(), tile.bounds.getSouthEast()].map((at) => map.latLngToLayerPoint(at));
        const px = Math.max(Math.abs(b.x - a.x), Math.abs(b.y - a.y));
        set(tile.dot, px < DOT_PX);
        set(tile.outline, px >= DOT_PX);
        const isSeen = px >= PICTURE_PX && map.getBounds().intersects(tile.bounds);
        if (isSeen && !tile.picture) tile.picture = pictureOf(number, tile);
        if (tile.picture) set(tile.picture, isSeen);
      }
      mark();
    }

    function set(layer, isWanted) {
      if (isWanted) hitLayer.addLayer(layer);
      else hitLayer.removeLayer(layer);
    }

    function pictureOf(number, { bounds, corners }) {
      const url = source.picture(number, 256);
      const options = { pane: "pictures", className: "on-map", alt: "" };
      return url && (corners ? house.turned(url, corners, options) : L.imageOverlay(url, bounds, options));
    }

    function mark() {
      for (const [number, tile] of shown) {
        for (const layer of [tile.dot, tile.outline]) {
          const path = layer.getElement();
          if (!path) continue;
          path.classList.toggle("active", number === active);
          if (number === active && hitLayer.hasLayer(layer)) layer.bringToFront();
        }
      }
    }

    function tileOf(hit, column) {
      const bounds = latLngsNear(hit.bounds);
      const by = bounds.getWest() - hit.bounds[0];
      const corners = hit.corners && hit.corners.map(([lon, lat]) => L.latLng(lat, lon + by)); // null: upright in its bounds
      const className = `found of-${column}`;
      const tile = {
        bounds,
        corners,
        dot: L.circleMarker(bounds.getCenter(), { radius: 6, className }),
        outline: corners ? L.polygon(corners, { className }) : L.rectangle(bounds, { className }),
      };
      for (const layer of [tile.dot, tile.outline]) {
        layer.bindTooltip(house.el("span", {}, `${hit.rank}  ${house.inShort(hit.phrase || hit.tile_id, 60)}`), { sticky: true });
        layer.on("mouseover", () => on.activate(hit.number));
        layer.on("mouseout", () => on.activate(null));
        layer.on("click", () => on.open(hit.number));
      }
      return tile;
    }

    return {
      /** @param {object[][]} columns hits of each model; the view moves to them where `move` says so. */
      show(columns, move) {
        hitLayer.clearLayers();
        shown.clear();
        columns.forEach((hits, column) => {
          for (const hit of hits) {
            if (hit.bounds && !shown.has(hit.number)) shown.set(hit.number, tileOf(hit, column));
          }
        });
        if (move && shown.size) {
          const all = new L.LatLngBounds();
          for (const tile of shown.values()) all.extend(tile.bounds);
          map.fitBounds(all, { animate: !calm, maxZoom: 15, padding: [24, 24] });
        }
        arrange();
      },

      /** Draw the place that is asked about, and go there where `move` says so. */
      showAsked(asked, move) {
        askedLayer.clearLayers();
        home = middleOf(asked.bbox || archive.bounds);
        const of = { pane: "asked", interactive: false, className: "asked-area" };
        if (asked.bbox) L.rectangle(latLngsNear(asked.bbox), of).addTo(askedLayer);
        const coordsToLatLng = ([lon, lat]) => L.latLng(lat, near(lon));
        if (asked.area) L.geoJSON(asked.area, { ...of, style: of, coordsToLatLng, pointToLayer: () => null }).addTo(askedLayer);
        if (!move) return;
        const bounds = asked.bbox ? latLngsNear(asked.bbox) : boundsOf(askedLayer);
        if (bounds) map.fitBounds(bounds, { animate: !calm, padding: [24, 24] });
      },

      /** Mark a tile; `move`: bring it into view. */
      activate(number, move) {
        active = number;
        mark();
        const tile = shown.get(number);
        if (tile && move && !map.getBounds().contains(tile.bounds)) map.panTo(tile.bounds.getCenter(), { animate: !calm });
      },

      goTo(number) {
        const tile = shown.get(number);
        if (tile) map.fitBounds(tile.bounds, { animate: !calm, maxZoom: NEAREST, padding: [60, 60] });
      },

      /** The view as a box; null: it is the whole globe. */
      view: () => house.boxOfBounds(map.getBounds()),

      get isDrawing() {
        return drawing.isOn;
      },

      draw(isOn) {
        element.classList.toggle("drawing", isOn);
        if (isOn) drawing.start();
        else drawing.stop();
      },
    };
  };

  function middleOf([west, , east]) {
    return (west + (west <= east ? east : east + 360)) / 2;
  }

  function latLngs([west, south, east, north]) {
    return L.latLngBounds([south, west], [north, west <= east ? east : east + 360]);
  }

  function boundsOf(layers) {
    const found = L.featureGroup(layers.getLayers()).getBounds();
    return found.isValid() ? found : null;
  }
})((window.urbancross = window.urbancross || {}));
