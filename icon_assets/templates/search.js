"use strict";
// The search box. Values of data become text nodes only, never markup.
(() => {
  const MOST_ROWS = 50;
  const LEAST_ID = 6; // characters of an id
  const WAIT_MS = 80;
  const query = document.getElementById("query");
  const found = document.getElementById("found");
  const table = document.getElementById("results");
  let data = null;
  let lines = []; // of each sample, as they are shown
  let haystack = [];
  let timer = 0;

  function place(line) {
    return data.files[line[0]] + ":" + line[1];
  }

  function load() {
    if (data) return;
    data = JSON.parse(document.getElementById("samples").textContent);
    lines = data.line.map((line, number) => [line, ...(data.more[number] || [])].map(place));
    haystack = data.text.map((text, number) => ("\n" + lines[number].join("\n") + "\n" + text).toLowerCase());
    const names = data.arms.map((arm) => arm.name);
    table.tHead.replaceChildren(row("th", ["sample", ...names]));
  }

  // A row of cells; a cell is a text, or a list of texts of which the further ones are small.
  function row(tag, cells) {
    const line = document.createElement("tr");
    for (const cell of cells) {
      const texts = Array.isArray(cell) ? cell : [cell];
      const box = document.createElement(tag);
      box.append(texts[0]);
      for (const text of texts.slice(1)) {
        const small = document.createElement("small");
        small.append(text);
        box.append(small);
      }
      line.append(box);
    }
    return line;
  }

  function standing(arm, number) {
    const score = arm.score && arm.score[number];
    const rank = arm.rank[number];
    return [
      score === null ? "-" : String(score),
      rank ? "rank " + rank.toLocaleString("en") + " of " + arm.of.toLocaleString("en") : "not ranked",
      arm.in[number] ? "chosen, " + arm.in[number].toLocaleString("en") + " of " + arm.chosen.toLocaleString("en") : "not chosen",
    ];
  }

  function result(number) {
    const line = row("td", [[data.text[number], lines[number].join(", "), data.id[number]], ...data.arms.map((arm) => standing(arm, number))]);
    line.firstChild.className = "hit";
    line.firstChild.dir = "auto";
    return line;
  }

  // A whole line is that sample alone. Otherwise ids that begin with the text, then samples that have all the words, in the
  // order of the ranking.
  function matches(text) {
    const words = text.split(/\s+/);
    const line = "\n" + text + "\n";
    const found = { line: [], id: [], words: [] };
    for (let number = 0; number < haystack.length; number++) {
      if (haystack[number].includes(line)) found.line.push(number);
      else if (text.length >= LEAST_ID && data.id[number].startsWith(text)) found.id.push(number);
      else if (words.every((word) => haystack[number].includes(word))) found.words.push(number);
    }
    return found.line.length ? found.line : found.id.concat(found.words);
  }

  function search() {
    const text = query.value.trim().toLowerCase();
    load();
    const hits = text ? matches(text) : [];
    table.hidden = !hits.length;
    table.tBodies[0].replaceChildren(...hits.slice(0, MOST_ROWS).map(result));
    const shown = hits.length > MOST_ROWS ? ", the first " + MOST_ROWS + " are shown" : "";
    found.textContent = text ? hits.length.toLocaleString("en") + (hits.length === 1 ? " sample" : " samples") + shown : "";
  }

  query.addEventListener("focus", load, { once: true });
  query.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, WAIT_MS);
  });
  if (query.value) search();
})();
