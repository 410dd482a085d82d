// Draws the curves of runs with uPlot over what the server drew, and keeps rows and curves of running runs fresh.
// Without this script the pages say the same, as of when they were loaded.

const SECONDS = 3;
const dark = matchMedia("(prefers-color-scheme: dark)");
const style = () => getComputedStyle(document.documentElement);
const colour = (name) => () => style().getPropertyValue(name);

const ask = async (address) => {
  const answer = await fetch(address, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
};

// Of a stretch its least stands at its beginning and its largest in its middle, so that every extreme is drawn.
const line = (curve) => {
  if (curve.values) return [curve.steps, curve.values];
  const steps = [], values = [];
  curve.steps.forEach((step, at) => {
    const next = curve.steps[at + 1] ?? step + (at ? step - curve.steps[at - 1] : 1);
    steps.push(step, step + (next - step) / 2);
    values.push(curve.least[at], curve.largest[at]);
  });
  return [steps, values];
};

const together = (curves) => {
  const lines = curves.map(line).filter(([steps]) => steps.length);
  return lines.length === 1 ? lines[0] : lines.length ? uPlot.join(lines) : [[], []];
};

const options = (width, count, zoom) => ({
  width,
  height: 190,
  scales: { x: { time: false } },
  legend: { show: count === 1 },
  cursor: { drag: { x: true, y: false, setScale: false }, points: { show: count < 9 }, bind: { dblclick: () => null } },
  series: [
    { label: "step", value: (_, value) => (value == null ? "–" : String(Math.round(value))) },
    ...Array.from({ length: count }, (_, at) => ({ label: "value", stroke: colour(`--c${at % 8}`), dash: [[], [6, 3], [2, 3]][Math.floor(at / 8) % 3], width: 1.4, points: { show: false }, value: (_, value) => (value == null ? "–" : value.toPrecision(5)) })),
  ],
  axes: [{}, { size: 56 }].map((each) => ({ ...each, stroke: colour("--soft"), font: "12px system-ui", grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } })),
  hooks: {
    setSelect: [
      (plot) => {
        const { left, width: wide } = plot.select;
        if (wide < 4) return;
        const low = Math.floor(plot.posToVal(left, "x")), high = Math.ceil(plot.posToVal(left + wide, "x"));
        plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        zoom(low, high);
      },
    ],
  },
});

const draw = async (figure) => {
  const place = figure.querySelector(".drawn"), whole = figure.querySelector(".whole");
  let curves = (await ask(figure.dataset.source)).curves;
  const count = Math.max(1, curves.filter((each) => each.steps.length).length);
  const show = async (range) => {
    curves = (await ask(figure.dataset.source + range)).curves;
    plot.setData(together(curves));
    whole.hidden = !range;
  };
  const holder = document.createElement("div");
  const plot = new uPlot(options(place.clientWidth, count, (low, high) => show(`&low=${low}&high=${high}`)), together(curves), holder);
  place.replaceChildren(holder);
  plot.over.addEventListener("dblclick", () => whole.hidden || show(""));
  whole.addEventListener("click", () => show(""));
  new ResizeObserver(() => place.clientWidth && plot.setSize({ width: place.clientWidth, height: 190 })).observe(place);
  dark.addEventListener("change", () => plot.redraw());
  // Only what is new is asked for; a curve that has grown much is asked for once more, in stretches.
  return async () => {
    if (!whole.hidden || curves.length !== 1) return;
    const [curve] = curves;
    const [fresh] = (await ask(`${figure.dataset.source}&after=${curve.count}`)).curves;
    if (!fresh.steps.length) return;
    if (curve.steps.length + fresh.steps.length > 3000) return show("");
    curve.count = fresh.count;
    curve.steps.push(...fresh.steps);
    if (curve.values) curve.values.push(...fresh.values);
    else for (const name of ["least", "largest"]) curve[name].push(...fresh.values);
    plot.setData(together(curves));
  };
};

const page = async (address) => new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");

const freshRows = async (table) => {
  const running = [...table.querySelectorAll("tr[data-running]")];
  if (!running.length) return false;
  const found = await page(table.dataset.poll + running.map((row) => `&run=${row.id.slice(1)}`).join(""));
  for (const row of found.querySelectorAll("tr")) {
    const old = document.getElementById(row.id);
    if (!old || old.outerHTML === row.outerHTML) continue;
    const ticked = old.querySelector("input").checked;
    old.replaceWith(row);
    row.querySelector("input").checked = ticked;
  }
  return true;
};

const freshParts = async (holder) => {
  const found = await page(holder.dataset.pollParts);
  for (const part of found.querySelectorAll("[data-part]")) {
    const old = document.getElementById(part.id);
    if (old && old.innerHTML !== part.innerHTML) old.replaceWith(part);
  }
  return found.querySelector("[data-poll-parts]") !== null;
};

// Of many runs the server's drawing is enough to begin with: what draws it finer comes when somebody asks for it.
const closer = (figure) => {
  const button = figure.querySelector(".closer");
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    if (!globalThis.uPlot) {
      await new Promise((done, failed) => {
        const script = Object.assign(document.createElement("script"), { src: figure.dataset.later, onload: done, onerror: failed });
        document.head.append(script);
      });
    }
    await draw(figure);
    button.hidden = true;
  });
};

const figures = [...document.querySelectorAll("figure.curve")];
figures.filter((each) => each.dataset.later).forEach(closer);
const drawn = await Promise.all(figures.filter((each) => !each.dataset.later).map((each) => draw(each).catch(() => async () => {})));
const table = document.querySelector("table[data-poll]"), holder = document.querySelector("[data-poll-parts]");

const poll = async () => {
  let more = true;
  if (!document.hidden && String(getSelection()) === "") {
    try {
      more = table ? await freshRows(table) : await freshParts(holder);
      for (const each of drawn) await each();
    } catch {
      more = true; // the server is away: asked again
    }
  }
  if (more) setTimeout(poll, SECONDS * 1000);
};
if (table || holder) setTimeout(poll, SECONDS * 1000);
