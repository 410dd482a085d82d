// Keeps a page that says data-live="seconds" fresh. Without this script the page is the same, as of when it was loaded.
const main = document.querySelector("main[data-live]");

const busy = () =>
  document.hidden ||
  String(getSelection()) !== "" ||
  (main.contains(document.activeElement) && document.activeElement !== main);

// What the reader opened or closed stays so: the n-th <details> of the new page takes the state of the n-th of the old.
const keep = (from, to) => {
  const after = to.querySelectorAll("details");
  from.querySelectorAll("details").forEach((each, index) => {
    if (after[index]) after[index].open = each.open;
  });
};

const refresh = async () => {
  if (busy()) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok || busy()) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.querySelector("main");
  if (!fresh) return;
  keep(main, fresh);
  if (fresh.innerHTML !== main.innerHTML) main.replaceChildren(...fresh.childNodes);
  document.title = page.title;
  for (const part of page.querySelectorAll("[data-live-part]")) {
    const old = document.querySelector(`[data-live-part="${part.dataset.livePart}"]`);
    if (old) old.replaceWith(part);
  }
  if (!fresh.dataset.live) clearInterval(timer);
};

const timer = main ? setInterval(() => refresh().catch(() => {}), Number(main.dataset.live) * 1000) : 0;
