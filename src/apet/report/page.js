"use strict";

const PAGE = 30, PRINTED = 300;
const collator = new Intl.Collator("en", {numeric: true});
const value = entry => Array.isArray(entry) ? entry[0] : entry;
const text = entry => Array.isArray(entry) ? entry[1] : entry;

function make(tag, content, name) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (content !== undefined) element.append(content);
  return element;
}

/* Compare numbers by value and text alphabetically; missing values come last in both directions. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));
}

function fillRow(row, entries, isNumber) {
  entries.forEach((entry, i) => {
    const cell = make(i ? "td" : "th", text(entry), isNumber[i] ? "number" : "");
    if (!i) cell.scope = "row";
    row.append(cell);
  });
}

/* Details under a row: facts and a table of replicates. */
function makeDetails(details, index, width) {
  const facts = make("dl"), runs = make("table"), head = runs.createTHead().insertRow(), body = runs.createTBody();
  details.facts[index].forEach((fact, i) => {
    const pair = make("div");
    pair.append(make("dt", details.labels[i]), make("dd", fact));
    facts.append(pair);
  });
  for (const [label, number] of details.columns) {
    const cell = make("th", label, number ? "number" : "");
    cell.scope = "col";
    head.append(cell);
  }
  const isNumber = details.columns.map(column => column[1]);
  for (const run of details.runs[index]) fillRow(body.insertRow(), run, isNumber);
  const box = make("div");
  box.append(facts, runs);
  const row = make("tr", undefined, "details"), cell = row.insertCell();
  cell.colSpan = width;
  cell.append(box);
  return row;
}

/* A table with sorting, filtering and pages; the document holds only the rows of one page. */
function makeTable(section) {
  const {choose, rows, details} = JSON.parse(section.querySelector("script").textContent);
  const heads = [...section.querySelectorAll("thead th")], body = section.querySelector("tbody");
  const tools = section.querySelector(".tools"), pages = section.querySelector(".pages");
  const search = tools.querySelector("input"), selects = [...tools.querySelectorAll("select")];
  const [before, after] = pages.querySelectorAll("button"), status = pages.querySelector("p");
  const isNumber = heads.map(head => head.classList.contains("number"));
  const chosen = choose.flatMap((selectable, column) => selectable ? [column] : []);
  const searchable = rows.map(row => row.map(text).join("\n").toLowerCase());
  let order = rows.map((_, i) => i), visible = order, page = 0;

  function draw(size = PAGE) {
    const first = page * size, pageRows = visible.slice(first, first + size);
    body.replaceChildren(...pageRows.map(drawRow));
    const range = pageRows.length ? `${(first + 1).toLocaleString("en")}–${(first + pageRows.length).toLocaleString("en")} of ` : "";
    const total = visible.length === rows.length ? "" : ` (${rows.length.toLocaleString("en")} in all)`;
    status.textContent = `${range}${visible.length.toLocaleString("en")} ${visible.length === 1 ? "row" : "rows"}${total}`;
    before.hidden = after.hidden = visible.length <= size;
    before.disabled = page === 0;
    after.disabled = first + size >= visible.length;
  }

  function drawRow(index) {
    const row = make("tr");
    fillRow(row, rows[index], isNumber);
    if (details && details.facts[index].length) {
      const button = make("button", row.cells[0].textContent, "open");
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        if (open) row.nextSibling.remove(); else row.after(makeDetails(details, index, heads.length));
      });
      row.cells[0].replaceChildren(button);
    }
    return row;
  }

  function filter() {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const picked = selects.flatMap((select, i) => select.value ? [[chosen[i], select.value]] : []);
    visible = order.filter(i => terms.every(term => searchable[i].includes(term))
      && picked.every(([column, option]) => text(rows[i][column]) === option));
    page = 0;
    draw();
  }

  function sort(column) {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const sign = ascending ? 1 : -1;
    order = rows.map((_, i) => i).sort((a, b) => compare(value(rows[a][column]), value(rows[b][column]), sign) || a - b);
    filter();
  }

  selects.forEach((select, i) => {
    const options = [...new Set(rows.map(row => text(row[chosen[i]])))];
    for (const option of options) select.append(new Option(option, option));
    select.parentElement.hidden = options.length < 2;
    select.addEventListener("change", filter);
  });
  search.addEventListener("input", filter);
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
  before.addEventListener("click", () => { page -= 1; draw(); });
  after.addEventListener("click", () => { page += 1; draw(); });
  addEventListener("beforeprint", () => { page = 0; draw(PRINTED); });
  addEventListener("afterprint", () => draw());
  tools.hidden = rows.length < 6;
  pages.hidden = false;
  draw();
}

function makeFigure(figure) {
  const image = figure.querySelector("img"), dialog = document.querySelector("dialog");
  figure.querySelector("a.image").href = image.src;
  figure.querySelector(".zoom").addEventListener("click", () => {
    const large = dialog.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    dialog.showModal();
  });
}

document.querySelectorAll("[data-table]").forEach(makeTable);
document.querySelectorAll("figure").forEach(makeFigure);
