/* One tile, large: its segments, captions, tags, place and time, and what to do with it. */
(function (house) {
  "use strict";

  const { el } = house;
  const PICTURE_PX = 768;

  /**
   * @param {HTMLDialogElement} dialog
   * @param {object} archive
   * @param {object} source
   * @param {object} outlines of `house.outlines`.
   * @param {{closed: function, step: function, tile: function, tag: function, place: function}} on
   */
  house.tile = function (dialog, archive, source, outlines, on) {
    let open = null; // the hit
    let ours = false; // closed by the page, not by Esc
    dialog.addEventListener("close", () => {
      if (dialog.open) return; // again, by now
      const was = open;
      open = null;
      if (!ours && was) on.closed(was.number);
      ours = false;
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

    function frame(hit) {
      const holder = el("div", { class: "large" }, house.pictureOrNone(source.picture(hit.number, PICTURE_PX)));
      const legend = el("ol", { class: "legend", hidden: true, "aria-label": "Segments" });
      outlines.of(hit, true).then((told) => {
        if (open !== hit) return;
        const best = hit.where ? hit.where.rank : null;
        const drawn = outlines.drawn(told, best, "meet");
        if (!drawn) return;
        holder.append(drawn);
        const light = (rank) =>
          drawn.querySelectorAll("path").forEach((path) => path.classList.toggle("lit", path.dataset.rank === String(rank)));
        legend.append(
          ...told.segments.map((segment) => {
            const words = `segment ${segment.rank + 1}${segment.rank === best ? ", fits best" : ""}`;
            const of = { class: segment.rank === best ? "best" : "", type: "button" };
            const lit = { onmouseenter: () => light(segment.rank), onmouseleave: () => light(null) };
            return el("li", {}, el("button", { ...of, ...lit, onfocus: () => light(segment.rank), onblur: () => light(null) }, words));
          }),
        );
        legend.hidden = false;
      });
      return el("div", { class: "seen" }, holder, legend);
    }

    /** A caption with the phrase that fits best marked. */
    function caption(text, phrase) {
      const at = phrase ? text.indexOf(phrase) : -1;
      if (at < 0) return el("li", {}, text);
      return el("li", {}, text.slice(0, at), el("mark", {}, phrase), text.slice(at + phrase.length));
    }

    function facts(hit) {
      const rows = [
        ["score", hit.score.toFixed(4)],
        ["best segment", hit.where && `number ${hit.where.rank + 1}, score ${hit.where.score.toFixed(3)}`],
        ["place", hit.bounds && house.placeOf(hit.bounds)],
        ["time", hit.datetime],
        ["pixel", hit.gsd_m && `${Number(hit.gsd_m.toPrecision(3))} m`],
        ["domain", hit.domain],
        ["split", hit.split],
        ["number", String(hit.number)],
      ];
      return el("dl", {}, rows.filter((row) => row[1]).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    }

    function explain(hit) {
      const line = `urbancross explain --archive ${quoted(archive.name)} ${quoted(hit.tile_id)}`;
      const code = el("code", {}, line);
      const button = el("button", { type: "button", onclick: async () => {
        button.textContent = (await house.copy(line, code)) ? "Copied" : "Selected";
      } }, "Copy");
      return el("p", { class: "explain" }, code, button);
    }

    function actions(hit, asked) {
      const vote = (name, words, key) =>
        el("button", {
          type: "button", class: `act ${name}`, "aria-pressed": String(asked[name].includes(hit.number)),
          onclick: () => on.tile(name, hit.number),
        }, words, " ", el("kbd", {}, key));
      return el(
        "div",
        { class: "actions" },
        vote("like", "More like this", "m"),
        vote("unlike", "Less like this", "l"),
        hit.bounds && archive.bounds && el("button", { type: "button", class: "act", onclick: () => on.place(hit.number) }, "Show on the map"),
      );
    }

    function tags(hit) {
      const chip = (tag) => el("button", { type: "button", class: "chip only", title: "Only tiles with this tag", onclick: () => on.tag(tag) }, tag);
      return hit.tags.length > 0 && [el("h3", {}, "Tags"), el("p", { class: "tags" }, hit.tags.map(chip))];
    }

    return {
      get open() {
        return open ? open.number : null;
      },

      show(hit, asked) {
        open = hit;
        dialog.replaceChildren(
          el(
            "header",
            {},
            el("h2", { id: "tile-title", tabindex: -1 }, el("b", {}, String(hit.rank)), " ", hit.tile_id),
            el("button", { type: "button", "aria-label": "Previous tile", title: "Previous (←)", onclick: () => on.step(-1) }, "←"),
            el("button", { type: "button", "aria-label": "Next tile", title: "Next (→)", onclick: () => on.step(1) }, "→"),
            el("button", { type: "button", "aria-label": "Close", title: "Close (Esc)", onclick: () => dialog.close() }, "×"),
          ),
          el(
            "div",
            { class: "body" },
            frame(hit),
            el(
              "div",
              { class: "told" },
              actions(hit, asked),
              hit.captions.length > 0 && [el("h3", {}, "Captions"), el("ul", { class: "captions" }, [...new Set(hit.captions)].map((text) => caption(text, hit.phrase)))],
              tags(hit) || null,
              facts(hit),
              explain(hit),
            ),
          ),
        );
        if (!dialog.open) dialog.showModal();
        dialog.querySelector("#tile-title").focus();
      },

      close() {
        if (!dialog.open) return;
        ours = true;
        dialog.close();
      },
    };
  };

  /** As a shell takes it for one word. */
  function quoted(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
  }
})((window.urbancross = window.urbancross || {}));
