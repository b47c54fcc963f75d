/* Where answers come from: `urbancross serve`, over HTTP. A source of another kind has the same functions. */
(function (house) {
  "use strict";

  const GONE = "the server does not answer; start it again with urbancross serve";

  /** A response, or an Error whose message is the server's one line. */
  async function ask(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(GONE);
    }
    if (response.ok) return response;
    let told = null;
    try {
      told = (await response.json()).error;
    } catch {
      /* a proxy's page: its status has to do */
    }
    throw new Error(told || `the server answered with ${response.status}; try again`);
  }

  async function json(path, options) {
    const response = await ask(path, options);
    try {
      return await response.json();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(GONE);
    }
  }

  function posted(body, signal) {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  }

  house.remote = function () {
    return {
      formats: { geojson: "GeoJSON", parquet: "GeoParquet" },
      archive: () => json("api/archive"),
      places: () => json("api/places"),
      search: (asked, signal) => json("api/search", posted(asked, signal)),
      picture: (number, px) => `api/tiles/${number}/picture?px=${px}`,
      segments: (number, model) => json(`api/tiles/${number}/segments?${new URLSearchParams({ model })}`),
      upload: (blob) => json("api/pictures", { method: "POST", body: blob }),
      download: async (asked, format) => (await ask(`api/download?format=${format}`, posted(asked))).blob(),
    };
  };
})((window.urbancross = window.urbancross || {}));
