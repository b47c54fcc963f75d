/* The form: what is typed and chosen, and the chips of what is asked already. */
(function (house) {
  "use strict";

  const { el, byId } = house;

  /**
   * @param {object} archive
   * @param {object} source
   * @param {{ask: function, picture: function, polygon: function, wrong: function}} on
   */
  house.form = function (archive, source, on) {
    const form = byId("query");
    const fields = Object.fromEntries(
      ["text", "plus", "minus", "since", "until", "domain", "split", "tag", "bbox", "segment_weight", "top", "model", "beside"].map(
        (name) => [name, byId(name)],
      ),
    );
    let asked = house.asked.nothing();
    const pictures = new Map(); // token of an upload -> its URL, while this page is open

    options(fields.domain, [["", "any"], ...archive.domains.map((name) => [name, name])]);
    options(fields.split, [["", "any"], ...archive.splits.map((name) => [name, name])]);
    options(fields.model, archive.models.map((model) => [model.key, model.key]));
    byId("known-tags").replaceChildren(...archive.tags.map((tag) => el("option", { value: tag })));
    byId("of-domain").hidden = archive.domains.length < 2;
    byId("of-split").hidden = archive.splits.length < 2;
    byId("of-tag").hidden = !archive.tags.length;
    byId("of-time").hidden = !archive.since && !archive.until;
    byId("of-place").hidden = !archive.bounds;
    byId("models").hidden = archive.models.length < 2;
    byId("of-picture").hidden = byId("or-picture").hidden = !source.upload;
    if (archive.since) {
      fields.since.placeholder = archive.since.slice(0, 7);
      fields.until.placeholder = (archive.until || archive.since).slice(0, 7);
    }
    const most = (archive.limits && archive.limits.top) || 200;
    options(fields.top, [20, 40, 100, 200].filter((n) => n <= most).map((n) => [String(n), String(n)]));
    if (archive.limits && archive.limits.query_chars) fields.text.maxLength = archive.limits.query_chars;

    function modelOf(key) {
      return archive.models.find((model) => model.key === key) || archive.models[0];
    }

    /** The question that the form holds; null where a field makes no sense, which is told. */
    function read() {
      const found = { ...asked, text: fields.text.value.trim() };
      for (const name of ["since", "until", "domain", "split"]) found[name] = fields[name].value.trim();
      const added = { plus: fields.plus, minus: fields.minus, tags: fields.tag };
      for (const [name, field] of Object.entries(added)) {
        const value = field.value.trim();
        if (value && !found[name].includes(value)) found[name] = [...found[name], value];
      }
      const box = fields.bbox.value.trim();
      found.bbox = box ? house.asked.boxOf(box) : null;
      if (box && !found.bbox) {
        on.wrong(`${box}: want west,south,east,north in degrees, such as 24.9,60.1,25.0,60.2`);
        fields.bbox.focus();
        return null;
      }
      found.model = fields.model.value === archive.models[0].key ? "" : fields.model.value;
      found.beside = fields.beside.value;
      const weighs = modelOf(fields.model.value).segments && (!found.beside || modelOf(found.beside).segments);
      found.segment_weight = weighs ? Number(fields.segment_weight.value) : 0;
      found.top = Number(fields.top.value);
      return found;
    }

    function submit(event) {
      if (event) event.preventDefault();
      const found = read();
      if (!found) return;
      for (const name of ["plus", "minus", "tag"]) fields[name].value = "";
      on.ask(found);
    }

    form.addEventListener("submit", submit);
    for (const name of ["domain", "split", "segment_weight", "top", "model", "beside"]) {
      fields[name].addEventListener("change", () => submit(null));
    }
    fields.segment_weight.addEventListener("input", weight);
    byId("picture").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) on.picture(file);
    });
    byId("polygon").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) on.polygon(file);
    });
    byId("more").addEventListener("click", () => unfold(byId("filters").hidden));

    function unfold(isOpen) {
      byId("filters").hidden = !isOpen;
      byId("more").setAttribute("aria-expanded", String(isOpen));
    }

    function weight() {
      byId("weight").textContent = `${Math.round(100 * Number(fields.segment_weight.value))} %`;
    }

    function chip(of) {
      const isTile = of.name === "like" || of.name === "unlike";
      const url = isTile ? source.picture(of.value, 64) : of.name === "pictures" ? pictures.get(of.value) : null;
      return el(
        "li",
        {},
        el(
          "button",
          { type: "button", class: `chip ${of.kind}`, "aria-label": `Take away: ${of.words}`, title: "Take away", onclick: () => on.ask(of.left) },
          url && el("img", { src: url, alt: "" }),
          el("span", {}, house.inShort(of.words, 60)),
          el("span", { class: "cross", "aria-hidden": "true" }, "×"),
        ),
      );
    }

    return {
      /** Show a question. */
      show(told) {
        asked = told;
        for (const name of ["text", "since", "until", "domain", "split"]) fields[name].value = told[name];
        fields.bbox.value = told.bbox ? told.bbox.map((degrees) => Number(degrees.toFixed(4))).join(",") : "";
        fields.model.value = modelOf(told.model).key;
        const others = archive.models.filter((model) => model.key !== fields.model.value);
        options(fields.beside, [["", "nothing"], ...others.map((model) => [model.key, model.key])]);
        fields.beside.value = others.some((model) => model.key === told.beside) ? told.beside : "";
        byId("of-weight").hidden = !modelOf(told.model).segments;
        fields.segment_weight.value = String(told.segment_weight);
        const top = String(told.top);
        if (![...fields.top.options].some(({ value }) => value === top)) fields.top.add(new Option(top, top));
        fields.top.value = top;
        weight();
        const chips = house.asked.chipsOf(told);
        byId("chips").replaceChildren(...chips.map(chip));
        byId("chips").hidden = !chips.length;
      },

      /** Remember what an upload looks like. */
      keep: (token, url) => pictures.set(token, url),
      unfold,
      focus() {
        fields.text.focus();
        fields.text.select();
      },
    };
  };

  function options(select, values) {
    select.replaceChildren(...values.map(([value, words]) => el("option", { value }, words)));
  }
})((window.urbancross = window.urbancross || {}));
