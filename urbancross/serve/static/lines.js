/* What is said of answers, a line each. */
(function (house) {
  "use strict";

  function mib(bytes) {
    return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  }

  function status(columns) {
    const [{ answer }] = columns;
    const took = Math.max(...columns.map((column) => column.answer.ms || 0));
    if (!answer.hits.length) return "No tile to compare with: the filters leave none.";
    const by = answer.how || (answer.by === "exact" ? "each in full" : `by ${answer.by} codes`);
    return `${answer.hits.length} of ${house.counted(answer.compared, "tile", "tiles")}, compared ${by} · ${took.toFixed(0)} ms`;
  }

  function doubt(columns) {
    const told = columns.filter(({ answer }) => answer.doubt && answer.doubt.nothing_matches);
    if (!told.length) return "";
    const who = columns.length > 1 ? ` (${told.map(({ key }) => key).join(", ")})` : "";
    const rate = (100 * told[0].answer.doubt.false_alarm).toFixed(1);
    return `Nothing here seems to match${who}. Of texts that do match, ${rate} % are wrongly told so.`;
  }

  house.lines = { doubt, mib, status };
})((window.urbancross = window.urbancross || {}));
