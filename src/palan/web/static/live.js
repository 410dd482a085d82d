// Keeps a page that says data-live="seconds" fresh. Without this script the page is the same, as of when it was loaded.
const main = document.querySelector("main[data-live]");

// Never under the reader's hand: not while text is selected, and not while nobody looks.
const busy = () => document.hidden || String(getSelection()) !== "";

// What the reader opened, scrolled or reached by keyboard stays so: parts are matched by id, or else by their order.
const parts = (root, what) => new Map([...root.querySelectorAll(what)].map((each, index) => [each.id || index, each]));

const swap = (fresh) => {
  for (const [key, old] of parts(main, "details")) {
    const next = parts(fresh, "details").get(key);
    if (next) next.open = old.open;
  }
  if (fresh.innerHTML === main.innerHTML) return;
  const reach = "a, button, summary, input, select, [tabindex]";
  const at = [...main.querySelectorAll(reach)].indexOf(document.activeElement);
  const scrolled = [...parts(main, ".scroll, .document")].map(([key, old]) => [key, old.scrollTop, old.scrollLeft]);
  main.replaceChildren(...fresh.childNodes);
  for (const [key, top, left] of scrolled) parts(main, ".scroll, .document").get(key)?.scrollTo(left, top);
  if (at >= 0) main.querySelectorAll(reach)[at]?.focus({ preventScroll: true });
};

const refresh = async () => {
  if (busy()) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok || busy()) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.querySelector("main");
  if (!fresh) return;
  const live = fresh.dataset.live;
  swap(fresh);
  document.title = page.title;
  for (const part of page.querySelectorAll("[data-live-part]")) {
    document.querySelector(`[data-live-part="${part.dataset.livePart}"]`)?.replaceWith(part);
  }
  if (!live) clearInterval(timer);
};

const timer = main ? setInterval(() => refresh().catch(() => {}), Number(main.dataset.live) * 1000) : 0;
