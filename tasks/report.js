
"use strict";
// Lists the images of the page's data, as text and elements only: names and labels are hostile.
(() => {
  const STATES = ["anomalous", "undecided", "normal", "unreadable"];
  const CHUNK = 60; // images that are added to the list at a time
  const { root, groups, columns, pictures } = JSON.parse(byId("data").textContent);
  const texts = columns.name.map((name, i) =>
    [name, groups[columns.group[i]], columns.defect_type[i], columns.error_kind[i]].join("\n").toLowerCase());
  const filter = { state: "", group: "", text: "" };
  const list = byId("list"), detail = byId("detail"), help = byId("help");
  const end = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) extend(); }, { rootMargin: "800px" });
  let shown = []; // places of the images that match
  let open = 0; // which of them the dialog shows

  function byId(id) { return document.getElementById(id); }

  function element(tag, className, ...content) {
    const made = document.createElement(tag);
    made.className = className;
    made.append(...content);
    return made;
  }

  const fixed = (value) => value === null ? "–" : value.toFixed(3);
  const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  // --- one image ---

  function picture(i) {
    const { size, image, heat, truth, regions } = pictures[i];
    const layers = element("div", "picture", layer("photo", image), layer("heat", heat));
    if (truth) layers.append(layer("truth", truth));
    layers.append(boxes(size, regions));
    layers.style.setProperty("--ratio", size[0] / size[1]);
    return element("div", "frame", layers);
  }

  function layer(className, source) {
    const image = element("img", className);
    image.alt = "";
    image.src = source;
    return image;
  }

  function boxes([width, height], regions) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "boxes");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    for (const [x, y, w, h] of regions) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      Object.entries({ x, y, width: w, height: h }).forEach(([name, value]) => rect.setAttribute(name, value));
      svg.append(rect);
    }
    return svg;
  }

  function state(i) {
    const name = STATES[columns.state[i]];
    return element("span", `pill ${name}`, name === "undecided" ? "no decision" : name);
  }

  function split(name) {
    const end = name.lastIndexOf("/") + 1;
    return [name.slice(0, end), name.slice(end)];
  }

  function label(i) {
    if (columns.label[i] === null) return null;
    return columns.label[i] === 0 ? "labelled normal" : `labelled ${columns.defect_type[i] || "anomalous"}`;
  }

  function reason(i) {
    return columns.error_kind[i] === null ? null : `${columns.error_kind[i]}: ${columns.error_detail[i]}`;
  }

  function about(i) {
    const regions = columns.regions[i] ? many(columns.regions[i], "region") : null;
    return [reason(i), label(i), regions, groups.length > 1 ? groups[columns.group[i]] : null]
      .filter(Boolean).join(" · ");
  }

  function item(i, place) {
    const p = element("span", "p", columns.p_value[i] === null ? "" : `p ${fixed(columns.p_value[i])}`);
    const score = element("span", "score", fixed(columns.score[i]));
    const [folder, base] = split(columns.name[i]), under = element("span", "folder", folder);
    const name = element("span", "name", base), facts = element("span", "about soft", about(i));
    const card = i in pictures;
    if (!card) name.append(under);
    const button = card
      ? element("button", "card", picture(i), element("span", "caption", element("span", "first", score, state(i), p), name, under, facts))
      : element("button", "row", score, state(i), name, facts, p);
    button.title = columns.name[i];
    button.dataset.place = place;
    return element("li", card ? "" : "line", button);
  }

  // --- the list ---

  function matches(i) {
    return (!filter.state || STATES[columns.state[i]] === filter.state)
      && (filter.group === "" || columns.group[i] === Number(filter.group))
      && texts[i].includes(filter.text);
  }

  function update() {
    shown = columns.name.map((_, i) => i).filter(matches);
    list.replaceChildren();
    extend();
    byId("none").hidden = shown.length > 0;
    byId("none").textContent = texts.length ? "No image matches." : "There are no images.";
    byId("count").value = `${shown.length.toLocaleString("en")} of ${many(texts.length.toLocaleString("en"), "image")}`;
    document.querySelectorAll(".tile").forEach((tile) =>
      tile.setAttribute("aria-pressed", String(tile.dataset.state === filter.state)));
  }

  function extend(until = list.children.length + CHUNK) {
    const from = list.children.length;
    list.append(...shown.slice(from, until).map((i, n) => item(i, from + n)));
    end.unobserve(byId("more"));
    if (list.children.length < shown.length) end.observe(byId("more")); // tells at once where the end is in sight
  }

  function focused() {
    const place = document.activeElement?.dataset.place;
    return place === undefined ? -1 : Number(place);
  }

  function go(place) {
    place = Math.max(0, Math.min(shown.length - 1, place));
    if (place >= list.children.length) extend(place + CHUNK);
    const button = list.children[place]?.firstChild;
    button?.focus({ preventScroll: true });
    button?.scrollIntoView({ block: "nearest" });
  }

  function goDown(direction) {
    // the nearest image in the row below (1) or above (-1)
    const from = focused();
    if (from < 0) return go(0);
    const here = list.children[from].getBoundingClientRect();
    extend(Math.max(list.children.length, from + CHUNK));
    for (let to = from + direction, row = null, best = from; ; to += direction) {
      const box = list.children[to]?.getBoundingClientRect();
      if (!box || (row !== null && Math.abs(box.top - row) > 1)) return go(best);
      if (Math.abs(box.top - here.top) <= 1) continue;
      if (row === null || Math.abs(box.left - here.left) < Math.abs(list.children[best].getBoundingClientRect().left - here.left)) best = to;
      row = box.top;
    }
  }

  // --- the dialog ---

  function show(place) {
    open = Math.max(0, Math.min(shown.length - 1, place));
    const i = shown[open], picked = pictures[i];
    byId("place").textContent = `${(open + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
    byId("previous").disabled = open === 0;
    byId("next").disabled = open === shown.length - 1;
    byId("detail-name").textContent = split(columns.name[i])[1];
    byId("detail-picture").replaceChildren(picked ? picture(i) : element("p", "soft none", withoutPicture(i)));
    byId("facts").replaceChildren(...facts(i).flatMap(([name, value]) => [
      element("dt", "", name), element("dd", name === "URI" ? "uri" : "", value)]));
    byId("detail-regions").replaceChildren(...(picked?.regions.length ? [regionTable(picked.regions)] : []));
    if (!detail.open) {
      detail.showModal();
      detail.focus(); // instead of its first button
    }
  }

  function withoutPicture(i) {
    return columns.score[i] === null
      ? "There is no picture of what cannot be read."
      : `This page has pictures of ${many(Object.keys(pictures).length, "image")}, the first and the last of the list.`;
  }

  function facts(i) {
    return [
      ["Decision", state(i)],
      ["Reason", reason(i)],
      ["Score", columns.score[i] === null ? null : fixed(columns.score[i])],
      ["Threshold", columns.threshold[i] === null ? null : fixed(columns.threshold[i])],
      ["p-value", columns.p_value[i] === null ? null : fixed(columns.p_value[i])],
      ["Class", groups[columns.group[i]]],
      ["Label", label(i)],
      ["Size", pictures[i] ? pictures[i].size.join(" × ") : null],
      ["Regions", columns.score[i] === null ? null : String(columns.regions[i])],
      ["URI", root + columns.name[i]],
    ].filter(([, value]) => value !== null);
  }

  function regionTable(regions) {
    const heads = ["x, y", "size", "area", "peak"].map((name) => element("th", "", name));
    const rows = regions.map(([x, y, w, h, area, peak]) =>
      element("tr", "", ...[`${x}, ${y}`, `${w} × ${h}`, String(area), fixed(peak)].map((cell) => element("td", "", cell))));
    return element("table", "", element("thead", "", element("tr", "", ...heads)), element("tbody", "", ...rows));
  }

  // --- what people do ---

  function toggle(name) {
    const box = document.querySelector(`[data-layer="${name}"]`);
    box.checked = !box.checked;
    layers();
  }

  function layers() {
    document.querySelectorAll("[data-layer]").forEach((box) =>
      document.body.classList.toggle(`no-${box.dataset.layer}`, !box.checked));
  }

  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    ArrowDown: () => detail.open ? step(1) : goDown(1), ArrowUp: () => detail.open ? step(-1) : goDown(-1),
    h: () => toggle("heat"), r: () => toggle("regions"), g: () => toggle("truth"),
    "/": () => { if (!detail.open) byId("text").focus(); },
    "?": () => help.showModal(),
  };

  function step(by) { detail.open ? show(open + by) : go(focused() + by); }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], select");
    if (typing && event.key === "Escape") {
      event.preventDefault(); // it would empty the field and tell nobody
      event.target.blur();
    }
    if (typing || help.open || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.place));
  });
  document.querySelector(".tiles").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) { filter.state = tile.dataset.state; update(); }
  });
  byId("text").addEventListener("input", (event) => { filter.text = event.target.value.toLowerCase(); update(); });
  byId("group").addEventListener("change", (event) => { filter.group = event.target.value; update(); });
  document.querySelector(".layers").addEventListener("change", layers);
  byId("keys").addEventListener("click", () => help.showModal());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => detail.close());
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
  detail.addEventListener("close", () => go(open));

  byId("group").append(...groups.map((name, place) => new Option(name, place)));
  byId("group").hidden = groups.length < 2;
  byId("truth-layer").hidden = !Object.values(pictures).some((picked) => picked.truth);
  update();
})();
