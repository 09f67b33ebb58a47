"use strict";
// The page is read from a file or an attachment: everything it shows is in it, and nothing is loaded from elsewhere.

const read = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);
const make = (name, content = "", style = "") => {
  const element = document.createElement(name);
  if (style) element.className = style;
  element.append(content);
  return element;
};
const options = (select, entries) => {
  select.replaceChildren(...entries.map(([value, text]) => Object.assign(make("option", text), { value })));
};

// Plots: a click on a name in a legend hides its line

function preparePlots() {
  for (const entry of document.querySelectorAll("svg [data-legend]")) {
    entry.addEventListener("click", () => {
      const place = entry.dataset.legend;
      const parts = entry.closest("svg").querySelectorAll(`[data-series="${place}"], [data-legend="${place}"]`);
      for (const part of parts) part.classList.toggle("off");
    });
  }
}

// Tables: a click on a heading sorts; the unpruned model stays first

const value = (text) => {
  const number = text.match(/[-+]?\d+(\.\d+)?/); // of an interval its lower end
  return number === null ? null : Number(number[0]);
};

function sortTable(head) {
  const table = head.closest("table");
  const column = [...head.parentElement.children].indexOf(head);
  const named = head.classList.contains("name");
  const down = head.dataset.order ? head.dataset.order !== "down" : !named;
  for (const other of head.parentElement.children) delete other.dataset.order;
  head.dataset.order = down ? "down" : "up";
  const body = table.tBodies[0];
  const fixed = [...body.rows].filter((row) => row.classList.contains("whole"));
  const rows = [...body.rows].filter((row) => !row.classList.contains("whole"));
  const text = (row) => row.cells[column].textContent;
  rows.sort((first, second) => {
    if (named) return (down ? -1 : 1) * text(first).localeCompare(text(second));
    const [a, b] = [value(text(first)), value(text(second))];
    if (a === null || b === null) return (a === null) - (b === null); // what is not known stands last
    return down ? b - a : a - b;
  });
  body.append(...fixed, ...rows);
}

function prepareTables() {
  for (const table of document.querySelectorAll("table.board")) table.tBodies[0].rows[0]?.classList.add("whole");
  for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => sortTable(head));
}

// Kept tokens

const frames = ["#ffd200", "#00c8ff", "#ff5aa0", "#8cff5a"];

function drawKept(picture, image, reasons) {
  const scale = Math.max(1, Math.ceil(256 / picture.width));
  const canvas = Object.assign(document.createElement("canvas"), {
    width: picture.width * scale,
    height: picture.height * scale,
  });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.filter = "saturate(0.3) brightness(0.28)";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  const [rows, columns] = image.grid;
  image.kept.forEach((index, place) => {
    const row = Math.floor(index / columns);
    const column = index % columns;
    const left = Math.round((column * canvas.width) / columns);
    const top = Math.round((row * canvas.height) / rows);
    const width = Math.round(((column + 1) * canvas.width) / columns) - left;
    const height = Math.round(((row + 1) * canvas.height) / rows) - top;
    pen.drawImage(picture, left / scale, top / scale, width / scale, height / scale, left, top, width, height);
    if (image.kept.length < rows * columns) {
      pen.strokeStyle = frames[Math.max(0, reasons.indexOf(image.labels[place])) % frames.length];
      pen.strokeRect(left + 0.5, top + 0.5, width - 1, height - 1);
    }
  });
  return canvas;
}

async function prepareViewer() {
  const { pictures, subjects } = read("kept");
  const box = document.getElementById("viewer");
  if (!box || !subjects.length) return;
  const colours = read("colours");
  const [subjectBox, sampleBox, budgetBox] = ["subject", "sample", "budget"].map((id) =>
    document.getElementById(`viewer-${id}`),
  );
  const loaded = {};
  await Promise.all(
    Object.entries(pictures).map(async ([name, source]) => {
      loaded[name] = new Image();
      loaded[name].src = source;
      await loaded[name].decode();
    }),
  );
  options(subjectBox, subjects.map((subject, place) => [place, `${subject.model}, ${subject.task}`]));
  subjectBox.parentElement.hidden = subjects.length < 2;

  const draw = () => {
    const subject = subjects[subjectBox.value];
    const sample = subject.samples[sampleBox.value];
    const cells = subject.cells.filter((cell) => ["all", budgetBox.value].includes(cell.budget));
    const shown = cells.filter((cell) => cell.samples[sample.index]);
    const reasons = [...new Set(shown.flatMap((cell) => cell.samples[sample.index].images.flatMap((i) => i.labels)))];
    const panels = shown.map((cell) => {
      const found = cell.samples[sample.index];
      const panel = make("div", "", found.images.length > 1 ? "panel frames" : "panel");
      const canvases = make("div", "", "canvases");
      found.images.forEach((image, place) =>
        canvases.append(drawKept(loaded[sample.pictures[place]], image, reasons)),
      );
      const dot = make("span", "", "dot");
      dot.style.background = colours[cell.pruner];
      const kept = found.images.reduce((sum, image) => sum + image.kept.length, 0);
      const name = make("b", cell.label);
      const said = make("span", found.prediction || "nothing", found.score >= 0.5 ? "right" : "wrong");
      panel.append(canvases, dot, name, ` ${kept} tokens`, make("br"), "says: ", said);
      return panel;
    });
    box.replaceChildren(...panels);
    const legend = document.getElementById("viewer-legend");
    const named = reasons.filter(Boolean);
    legend.replaceChildren(
      ...named.map((reason) => {
        const entry = make("span");
        const square = make("i");
        square.style.borderColor = frames[reasons.indexOf(reason) % frames.length];
        entry.append(square, reason);
        return entry;
      }),
    );
  };
  const restart = () => {
    const subject = subjects[subjectBox.value];
    options(sampleBox, subject.samples.map((one, place) => [place, `${one.index}: ${one.question} [${one.answer}]`]));
    const budgets = [...new Set(subject.cells.map((cell) => cell.budget))].filter((budget) => budget !== "all");
    options(budgetBox, (budgets.length ? budgets : ["all"]).map((budget) => [budget, budget]));
    budgetBox.selectedIndex = budgetBox.options.length - 1;
    draw();
  };
  subjectBox.addEventListener("change", restart);
  sampleBox.addEventListener("change", draw);
  budgetBox.addEventListener("change", draw);
  restart();
}

// Lost questions

function prepareCases() {
  const subjects = read("cases");
  const body = document.querySelector("#cases tbody");
  if (!body || !subjects.length) return;
  const [subjectBox, budgetBox, prunerBox] = ["subject", "budget", "pruner"].map((id) =>
    document.getElementById(`cases-${id}`),
  );
  options(subjectBox, subjects.map((subject, place) => [place, `${subject.model}, ${subject.task}`]));
  subjectBox.parentElement.hidden = subjects.length < 2;
  const draw = () => {
    const subject = subjects[subjectBox.value];
    const cell = subject.cells[prunerBox.value];
    const rows = cell.shown.map(([place, said]) => {
      const [question, answer, family] = subject.questions[place];
      const row = make("tr");
      for (const text of [String(place), family, question, answer, said]) row.append(make("td", text, "name"));
      row.lastChild.classList.add("wrong");
      return row;
    });
    body.replaceChildren(...rows);
    const part = cell.shown.length < cell.lost ? `; ${cell.shown.length} of them, evenly spaced, are shown` : "";
    document.getElementById("cases-count").textContent =
      `${cell.lost} of the ${subject.right} questions that the unpruned model answers right are lost${part}.`;
  };
  const pruners = () => {
    const cells = subjects[subjectBox.value].cells;
    const places = cells.map((_, place) => place).filter((place) => cells[place].budget === budgetBox.value);
    options(prunerBox, places.map((place) => [place, `${cells[place].label}: ${cells[place].lost} lost`]));
    draw();
  };
  const restart = () => {
    const budgets = [...new Set(subjects[subjectBox.value].cells.map((cell) => cell.budget))];
    options(budgetBox, budgets.map((budget) => [budget, budget]));
    budgetBox.selectedIndex = budgets.length - 1;
    pruners();
  };
  subjectBox.addEventListener("change", restart);
  budgetBox.addEventListener("change", pruners);
  prunerBox.addEventListener("change", draw);
  restart();
}

prepareTables();
prepareCases();
prepareViewer();
preparePlots();
