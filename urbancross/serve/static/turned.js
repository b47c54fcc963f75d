/* A picture on the map by three of its corners: turned against north, or mirrored, as its scene lies. */
(function (house) {
  "use strict";

  const SIDE_PX = 256; // of the element before it is laid over its place

  const Turned = L.ImageOverlay.extend({
    _reset() {
      const origin = this._map.getPixelOrigin();
      this._lay((at) => this._map.project(at).subtract(origin));
    },

    _animateZoom(event) {
      this._lay((at) => this._map._latLngToNewLayerPoint(at, event.zoom, event.center));
    },

    _lay(pointOf) {
      const [a, b, , d] = this.options.corners.map(pointOf);
      const { style } = this._image;
      style.width = style.height = `${SIDE_PX}px`;
      style.transformOrigin = "0 0";
      const along = [b, d].flatMap((end) => [(end.x - a.x) / SIDE_PX, (end.y - a.y) / SIDE_PX]);
      style.transform = `matrix(${[...along, a.x, a.y].join()})`;
    },
  });

  /** @param {L.LatLng[]} corners upper left, upper right, lower right and lower left of the picture. */
  house.turned = (url, corners, options) => new Turned(url, L.latLngBounds(corners), { ...options, corners });
})((window.urbancross = window.urbancross || {}));
