/* What was found, as cards in one column of cards for each model that was asked. */
(function (house) {
  "use strict";

  const { el } = house;
  const PICTURE_PX = 256;

  /**
   * @param {HTMLElement} element
   * @param {object} source
   * @param {object} outlines of `house.outlines`.
   * @param {{activate: function, open: function, tile: function}} on
   */
  house.grid = function (element, source, outlines, on) {
    let cards = [];
    let hasOutlines = null; // whether any tile of this archive has; a promise once one was asked
    const watcher = new IntersectionObserver(
      (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => outline(entry.target)),
      { rootMargin: "200px" },
    );

    async function outline(item) {
      watcher.unobserve(item);
      const hit = item.hit;
      if (!hasOutlines) hasOutlines = outlines.of(hit).then((told) => Boolean(hit.where || told.segments.length));
      if (!hit.where && !(await hasOutlines)) return;
      const drawn = outlines.drawn(await outlines.of(hit), hit.where && hit.where.rank, "slice");
      if (drawn) item.querySelector(".frame").append(drawn);
    }

    function card(hit, asked, shift) {
      const said = hit.phrase || hit.captions[0] || hit.tags.join(", ");
      const item = el(
        "li",
        { class: "hit", "data-number": hit.number },
        el(
          "button",
          {
            class: "open", type: "button", tabindex: -1,
            "aria-label": `Rank ${hit.rank}, score ${hit.score.toFixed(3)}, tile ${hit.tile_id}: ${said || "nothing is said of it"}`,
            onclick: () => on.open(hit.number),
            onfocus: () => enter(item),
          },
          el("span", { class: "frame" }, picture(source.picture(hit.number, PICTURE_PX))),
        ),
        el(
          "p",
          { class: "line" },
          el("b", {}, String(hit.rank)),
          el("span", { class: "score", title: "cosine of query and tile" }, hit.score.toFixed(3)),
          shift && el("span", { class: `shift ${shift.kind}`, title: shift.title }, shift.words),
          el("span", { class: "pair" }, vote(hit, asked, "like"), vote(hit, asked, "unlike")),
        ),
        el("p", { class: "said", title: said }, said || " "),
      );
      item.hit = hit;
      item.addEventListener("mouseenter", () => on.activate(hit.number, false));
      item.addEventListener("mouseleave", () => on.activate(null, false));
      watcher.observe(item);
      return item;
    }

    function vote(hit, asked, name) {
      const of = { like: ["+", "More like this", "m"], unlike: ["−", "Less like this", "l"] }[name];
      return el(
        "button",
        {
          class: `vote ${name}`, type: "button", tabindex: -1, title: `${of[1]} (${of[2]})`,
          "aria-label": `${of[1]}: rank ${hit.rank}`, "aria-pressed": String(asked[name].includes(hit.number)),
          onclick: () => on.tile(name, hit.number),
        },
        of[0],
      );
    }

    function enter(item) {
      for (const other of cards) other.querySelector(".open").tabIndex = other === item ? 0 : -1;
      on.activate(item.hit.number, true);
    }

    return {
      /**
       * @param {{title: string | null, hits: object[], others: Map<number, number> | null}[]} columns `others`: rank of
       *     a tile by the other model.
       */
      show(columns, asked) {
        watcher.disconnect();
        const held = document.activeElement && document.activeElement.closest(".hit");
        cards = [];
        element.replaceChildren(
          ...columns.map((column, nth) => {
            const items = column.hits.map((hit) => card(hit, asked, column.others && shiftOf(hit, column.others)));
            cards.push(...items);
            return el(
              "section",
              { class: `column of-${nth}`, "aria-label": column.title || "Tiles" },
              column.title && el("h2", {}, column.title),
              el("ol", { class: "cards" }, items),
            );
          }),
        );
        element.classList.toggle("beside", columns.length > 1);
        if (cards.length) cards[0].querySelector(".open").tabIndex = 0;
        if (held && cards.length) this.focus(held.hit.number);
      },

      /** Put the focus on a tile, or on the first where it is not shown. */
      focus(number) {
        const item = cards.find((one) => one.hit.number === number) || cards[0];
        if (item) item.querySelector(".open").focus();
      },

      activate(number) {
        for (const item of cards) item.classList.toggle("active", item.hit.number === number);
      },

      /** The tile that has the focus, or null. */
      get focused() {
        const item = document.activeElement && document.activeElement.closest(".hit");
        return item ? item.hit.number : null;
      },

      /** Move the focus by an arrow key; from nowhere, to the first tile. */
      walk(key) {
        if (!cards.length) return;
        const at = document.activeElement && document.activeElement.closest(".hit");
        const next = at ? toward(cards, at, key) : cards[0];
        if (next) next.querySelector(".open").focus();
      },
    };
  };

  function picture(url) {
    const none = () => el("span", { class: "no-picture" }, "no picture kept");
    if (!url) return none();
    return el("img", { src: url, alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.replaceWith(none()) });
  }

  /** How a rank differs from that by the other model. */
  function shiftOf(hit, others) {
    const other = others.get(hit.number);
    if (other === undefined) return { kind: "new", words: "only here", title: "the other model does not show it" };
    const by = other - hit.rank;
    const title = `rank ${other} by the other model`;
    if (by === 0) return { kind: "same", words: "=", title };
    return { kind: by > 0 ? "up" : "down", words: `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`, title };
  }

  /** The nearest card in the direction of an arrow; sideways from a row's end, the next in order. */
  function toward(cards, at, key) {
    const here = at.getBoundingClientRect();
    const step = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    const isSideways = key === "ArrowLeft" || key === "ArrowRight";
    const found = cards
      .map((card) => ({ card, box: card.getBoundingClientRect() }))
      .filter(({ box }) => {
        const [dx, dy] = [box.left - here.left, box.top - here.top];
        return isSideways ? Math.abs(dy) < 4 && dx * step > 4 : dy * step > 4;
      })
      .map(({ card, box }) => {
        const [dx, dy] = [Math.abs(box.left - here.left), Math.abs(box.top - here.top)];
        return { card, far: isSideways ? dx : 4 * dx + dy };
      })
      .sort((a, b) => a.far - b.far);
    if (found.length) return found[0].card;
    return isSideways ? cards[cards.indexOf(at) + step] : null;
  }

  house.pictureOrNone = picture;
})((window.urbancross = window.urbancross || {}));
