/* Typed words to phrases of captions, for a page that has no model: a word of a phrase, the same or one that begins so. */
(function (house) {
  "use strict";

  const MOST = 12; // phrases whose mean stands for words
  const ROUNDS = 4; // in which words that no phrase had yet are looked for
  const BEGINNING = 3; // letters from which on a word finds those that begin with it

  function stemmed(word) {
    if (word.length > 4 && word.endsWith("ies")) return `${word.slice(0, -3)}y`;
    return word.length > 3 && word.endsWith("s") && !word.endsWith("ss") ? word.slice(0, -1) : word;
  }

  /** @param {string[]} phrases @param {string[]} stop words that say nothing. */
  house.phrasebook = function (phrases, stop) {
    const idle = new Set(stop);
    const wordsOf = (text) => {
      const all = (text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || []).map(stemmed);
      const telling = all.filter((word) => !idle.has(word));
      return [...new Set(telling.length ? telling : all)];
    };
    const words = phrases.map(wordsOf);
    const having = new Map(); // word -> numbers of phrases
    words.forEach((some, i) => some.forEach((word) => having.set(word, [...(having.get(word) || []), i].slice(-5000))));
    const whole = new Map(phrases.map((text, i) => [plain(text), i]));

    /** Phrases with a word like this. */
    function like(word) {
      const found = new Set(having.get(word) || []);
      if (!found.size && word.length >= BEGINNING) {
        for (const [other, some] of having) if (other.startsWith(word)) some.forEach((i) => found.add(i));
      }
      return found;
    }

    /**
     * The phrases that stand for a text.
     *
     * @returns {{groups: {weight: number, phrases: number[]}[], missing: string[]}} groups to be added; words that no
     *     phrase has.
     */
    return function match(text) {
      const same = whole.get(plain(text));
      if (same !== undefined) return { groups: [{ weight: 1, phrases: [same] }], missing: [] };
      const likes = new Map(wordsOf(text).map((word) => [word, like(word)]));
      const missing = [...likes].filter(([, found]) => !found.size).map(([word]) => word);
      missing.forEach((word) => likes.delete(word));
      const rarity = new Map([...likes].map(([word, found]) => [word, Math.log(1 + phrases.length / found.size)]));
      const groups = [];
      for (let round = 0; round < ROUNDS && likes.size; round += 1) {
        const told = new Map(); // phrase -> how much of the text it says
        for (const [word, found] of likes) for (const i of found) told.set(i, (told.get(i) || 0) + rarity.get(word));
        const most = Math.max(...told.values());
        const best = [...told.keys()]
          .filter((i) => told.get(i) > most - 1e-9)
          .sort((a, b) => words[a].length - words[b].length || a - b);
        const shortest = words[best[0]].length;
        const chosen = best.filter((i) => words[i].length <= shortest + 2).slice(0, shortest === 1 ? 1 : MOST);
        groups.push({ weight: most, phrases: chosen });
        for (const [word, found] of likes) if (chosen.some((i) => found.has(i))) likes.delete(word);
      }
      return { groups, missing };
    };
  };

  function plain(text) {
    return (text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || []).join(" ");
  }
})((window.urbancross = window.urbancross || {}));
