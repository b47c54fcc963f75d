/* The keyboard. */
(function (house) {
  "use strict";

  const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];

  function isTyping(target) {
    return target.closest("textarea, select, input:not([type=file]):not([type=range])") !== null;
  }

  /** @param {Object<string, function>} on what keys do; `walk` takes an arrow's name. */
  house.keys = function (on) {
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      const { key, target } = event;
      if (key === "Escape") {
        if (on.escape(target)) event.preventDefault();
        return;
      }
      if (isTyping(target)) {
        if (key === "ArrowDown" && target.id === "text") {
          event.preventDefault();
          on.walk(key);
        }
        return;
      }
      if (ARROWS.includes(key)) {
        if (target.closest("#map, input") || !on.walk(key)) return;
      } else if (key === "/") on.query();
      else if (key === "m") on.vote("like");
      else if (key === "l") on.vote("unlike");
      else if (key === "b") on.draw();
      else if (key === "?") on.help();
      else return;
      event.preventDefault();
    });
  };
})((window.urbancross = window.urbancross || {}));
