/* The page: a question in, answers out; and what is asked next. */
(function (house) {
  "use strict";

  const { byId, tell } = house;

  /** Show an archive, by a source of answers such as `house.remote()`. */
  house.start = async function (source) {
    const form = byId("query");
    let isEager = false; // sent before the archive is there
    const wait = (event) => {
      event.preventDefault();
      isEager = true;
    };
    form.addEventListener("submit", wait);
    try {
      const archive = await source.archive();
      const typed = byId("text").value;
      form.removeEventListener("submit", wait);
      await new View(source, archive).begin();
      if (typed && !byId("text").value) byId("text").value = typed;
      if (typed && isEager) form.requestSubmit();
    } catch (error) {
      tell(byId("error"), error.message);
      tell(byId("size"), "");
    }
  };

  class View {
    constructor(source, archive) {
      this.source = source;
      this.archive = archive;
      this.asked = house.asked.nothing();
      this.columns = []; // of each model: its key and its answer
      this.isAnswered = false; // whether they answer what is asked
      this.searching = null; // the search under way
      this.hasMoved = false; // whether the map has been moved for a question of the address
    }

    async begin() {
      const { source, archive } = this;
      document.title = `${archive.name} · urbancross`;
      tell(byId("name"), archive.name);
      tell(byId("size"), [house.counted(archive.tiles, "tile", "tiles"), archive.note].filter(Boolean).join(" · "));
      const ask = (asked) => this.ask(asked);
      const wrong = (line) => tell(byId("error"), line);
      const files = { picture: (file) => this.byPicture(file), polygon: (file) => this.byPolygon(file), wrong };
      const outlines = house.outlines(source);
      const activate = (number, isFocus) => this.activate(number, isFocus);
      const open = (number) => this.go(this.asked, number);
      const vote = (name, number) => this.ask(house.asked.withTile(this.asked, name, number));
      this.form = house.form(archive, source, { ask, ...files });
      this.grid = house.grid(byId("hits"), source, outlines, { activate, open, tile: vote });
      this.tile = house.tile(byId("tile"), archive, source, outlines, {
        closed: (number) => {
          this.go(this.asked, null);
          this.grid.focus(number);
        },
        step: (by) => this.step(by),
        tile: (name, number) => {
          this.tile.close();
          vote(name, number);
        },
        tag: (tag) => {
          this.tile.close();
          this.ask({ ...this.asked, tags: [...new Set([...this.asked.tags, tag])] });
        },
        place: (number) => {
          this.tile.close();
          this.go(this.asked, null);
          this.map.goTo(number);
          byId("place").scrollIntoView({ block: "nearest" });
        },
      });
      this.showMap(activate, open);
      byId("examples").append(
        ...(archive.examples || []).map((text) =>
          house.el("button", { type: "button", onclick: () => ask({ ...this.asked, text }) }, text),
        ),
      );
      this.showDownloads();
      house.uploads(files);
      this.listen();
      window.addEventListener("popstate", () => this.follow());
      await this.follow();
    }

    showMap(activate, open) {
      const has = Boolean(this.archive.bounds);
      document.body.classList.toggle("no-map", !has);
      byId("place").hidden = !has;
      tell(byId("no-place"), has ? "" : "No map: no tile of this archive says where it lies (its images came without bounds).");
      if (!has) return;
      this.map = house.map(byId("map"), this.archive, this.source, {
        activate: (number) => activate(number, false),
        open,
        box: (bbox) => {
          this.drawn();
          if (bbox) this.ask({ ...this.asked, bbox, area: null });
        },
      });
      byId("draw").addEventListener("click", () => this.draw());
      byId("view").addEventListener("click", () => {
        const bbox = this.map.view();
        this.ask({ ...this.asked, bbox, area: null });
      });
    }

    showDownloads() {
      const button = ([format, words]) =>
        house.el("button", { type: "button", "data-format": format, title: `Download what was found as ${words}`, onclick: () => this.download(format) }, words);
      byId("downloads").replaceChildren("Download ", ...Object.entries(this.source.formats).map(button));
      byId("downloads").hidden = true;
    }

    listen() {
      const help = byId("keys");
      byId("help").addEventListener("click", () => help.showModal());
      help.addEventListener("click", (event) => (event.target === help || event.target.closest("button")) && help.close());
      byId("skip").addEventListener("click", () => this.grid.focus());
      const current = () => (this.tile.open !== null ? this.tile.open : this.grid.focused);
      house.keys({
        query: () => this.tile.open === null && !help.open && this.form.focus(),
        walk: (key) => {
          if (help.open) return false;
          if (this.tile.open === null) this.grid.walk(key);
          else if (key === "ArrowLeft" || key === "ArrowRight") this.step(key === "ArrowRight" ? 1 : -1);
          else return false; // the dialog scrolls
          return true;
        },
        vote: (name) => {
          const number = current();
          if (number === null || help.open) return;
          this.tile.close();
          this.ask(house.asked.withTile(this.asked, name, number));
        },
        draw: () => this.map && this.tile.open === null && !help.open && this.draw(),
        help: () => !help.open && help.showModal(),
        escape: (target) => {
          if (this.map && this.map.isDrawing) this.draw();
          else if (target.id === "text") target.blur();
          else return false; // dialogs close themselves
          return true;
        },
      });
    }

    draw() {
      this.map.draw(!this.map.isDrawing);
      this.drawn();
    }

    drawn() {
      const isOn = this.map.isDrawing;
      byId("draw").setAttribute("aria-pressed", String(isOn));
      tell(byId("drawing"), isOn ? "Press on the map and pull a box; Esc lets it be. Or type west,south,east,north under Filters." : "");
    }

    /** A new question: into the address, and from there to the answers. */
    ask(asked) {
      return this.go(asked, null);
    }

    go(asked, tile) {
      const hash = house.asked.hashOf(asked, tile);
      const isNew = hash !== (window.location.hash || "#");
      if (isNew) window.history.pushState(asked.area, "", hash);
      return this.follow(asked);
    }

    /** Do what the address says. `asked`: what it stands for, where that is known. */
    async follow(asked) {
      const told = house.asked.ofHash(window.location.hash);
      const { lost } = told;
      const wanted = asked || { ...told.asked, area: lost && lost.name === "area" ? window.history.state : told.asked.area };
      const isSame = this.isAnswered && JSON.stringify(wanted) === JSON.stringify(this.asked);
      this.form.show(wanted);
      if (!isSame) {
        this.asked = wanted;
        this.tile.close();
        await this.search();
      }
      if (!asked && lost && !wanted[lost.name]) tell(byId("error"), lost.why);
      this.openTile(told.tile);
    }

    openTile(number) {
      const hit = number === null ? null : this.hitOf(number);
      const was = this.tile.open;
      if (hit) this.tile.show(hit, this.asked);
      else this.tile.close();
      if (!hit && was !== null) this.grid.focus(was);
    }

    hitOf(number) {
      return this.columns.flatMap((column) => column.answer.hits).find((hit) => hit.number === number) || null;
    }

    async search() {
      if (this.searching) this.searching.abort();
      const { asked } = this;
      this.isAnswered = false;
      if (this.map) this.map.showAsked(asked, !this.hasMoved);
      if (!house.asked.wantsAnything(asked)) {
        const isOnlyLess = asked.minus.length || asked.unlike.length;
        this.show([], isOnlyLess ? "Say also what to look for: what is not wanted alone finds all." : "");
        return;
      }
      const searching = (this.searching = new AbortController());
      byId("found").setAttribute("aria-busy", "true");
      tell(byId("error"), "");
      const models = [asked.model || this.archive.models[0].key, ...(asked.beside ? [asked.beside] : [])];
      try {
        const ask = async (key) => {
          const answer = await this.source.search(house.asked.bodyOf(asked, key), searching.signal);
          for (const hit of answer.hits) hit.model = key;
          return { key, answer };
        };
        const columns = await Promise.all(models.map(ask));
        if (this.searching === searching) this.show(columns, "");
      } catch (error) {
        if (error.name === "AbortError" || this.searching !== searching) return;
        this.show([], error.message);  // hits of another question would pass for its own
        this.isAnswered = false;
      } finally {
        if (this.searching === searching) byId("found").removeAttribute("aria-busy");
      }
    }

    show(columns, line) {
      tell(byId("error"), line);
      this.columns = columns;
      this.isAnswered = true;
      const { asked } = this;
      const ranks = columns.map(({ answer }) => new Map(answer.hits.map((hit) => [hit.number, hit.rank])));
      this.grid.show(
        columns.map(({ key, answer }, nth) => ({
          title: columns.length > 1 ? key : null,
          hits: answer.hits,
          others: columns.length > 1 ? ranks[1 - nth] : null,
        })),
        asked,
      );
      byId("empty").hidden = columns.length > 0 || Boolean(line);
      byId("downloads").hidden = !columns.length || !columns[0].answer.hits.length;
      tell(byId("status"), columns.length ? house.lines.status(columns) : "");
      tell(byId("note"), columns.map(({ answer }) => answer.note).filter(Boolean)[0] || "");
      tell(byId("doubt"), house.lines.doubt(columns));
      if (!this.map) return;
      const move = columns.length > 0 && !asked.bbox && !asked.area;
      this.map.show(columns.map(({ answer }) => answer.hits), move);
      this.hasMoved = true;
    }

    activate(number, isFocus) {
      const now = number === null ? this.grid.focused : number;
      this.grid.activate(now);
      if (this.map) this.map.activate(now, isFocus);
    }

    step(by) {
      const hits = this.columns.flatMap((column) => column.answer.hits);
      const at = hits.findIndex((hit) => hit.number === this.tile.open);
      const next = hits[at + by];
      if (at < 0 || !next) return;
      window.history.replaceState(this.asked.area, "", house.asked.hashOf(this.asked, next.number));
      this.activate(next.number, true);
      this.tile.show(next, this.asked);
    }

    async byPicture(file) {
      if (!this.source.upload) return tell(byId("error"), "a picture needs the model: start urbancross serve");
      const most = this.archive.limits && this.archive.limits.upload_bytes;
      if (most && file.size > most) return tell(byId("error"), `the picture has ${house.lines.mib(file.size)}; at most ${house.lines.mib(most)} are taken`);
      try {
        const { picture } = await this.source.upload(file);
        this.form.keep(picture, URL.createObjectURL(file));
        return this.ask({ ...this.asked, pictures: [...this.asked.pictures, picture] });
      } catch (error) {
        return tell(byId("error"), error.message);
      }
    }

    async byPolygon(file) {
      try {
        const area = await house.polygonOf(file);
        this.hasMoved = false;
        return await this.ask({ ...this.asked, area, bbox: null });
      } catch (error) {
        return tell(byId("error"), error.message);
      }
    }

    async download(format) {
      try {
        const model = this.columns[0].key;
        house.save(`hits.${format}`, await this.source.download(house.asked.bodyOf(this.asked, model), format));
      } catch (error) {
        tell(byId("error"), error.message);
      }
    }
  }
})((window.urbancross = window.urbancross || {}));
