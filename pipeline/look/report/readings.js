// Tells a plot's values where it is pointed at, touched, or where the arrow keys lead.
const MOST = 12; // lines told at once: those nearest to the pointer
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
const written = (value) =>
  value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
const add = (parent, tag, text) => {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
};

for (const svg of document.querySelectorAll("svg[data-values]")) {
  const plot = JSON.parse(svg.dataset.values);
  const [left, right, first, last] = plot.x, [foot, top, least, most] = plot.y;
  const scale = plot.log ? Math.log10 : (value) => value;
  const acrossOf = (x) => left + ((x - first) / (last - first)) * (right - left);
  const downOf = (y) => foot + ((scale(y) - scale(least)) / (scale(most) - scale(least))) * (top - foot);
  const places = [...new Set(plot.lines.flatMap((line) => line.x.filter((x, n) => x !== null && line.y[n] !== null)))].sort((a, b) => a - b);
  if (!places.length) continue;
  const rule = document.createElementNS(svg.namespaceURI, "line");
  rule.setAttribute("class", "pointed");
  let now = null;

  const near = (line, x) => { // where a line has no such place, its next one, if that is beside it
    const away = line.x.map((one) => (one === null ? Infinity : Math.abs(one - x))), least = Math.min(...away);
    return least <= 0.02 * (last - first) ? away.indexOf(least) : -1;
  };
  const hide = () => { rule.remove(); tip.hidden = true; };
  const tell = (x, down) => {
    now = x;
    const picked = document.querySelector(".pick input:checked")?.id;
    const found = [];
    for (const line of plot.lines) {
      const n = line.x.includes(x) ? line.x.indexOf(x) : near(line, x);
      if (n < 0 || line.y[n] === null || (line.pick && picked !== "pick-all" && picked !== line.pick)) continue;
      found.push({ line, n, away: Math.abs(downOf(line.y[n]) - down) });
    }
    if (found.length > MOST) {
      const far = found.map((one) => one.away).sort((a, b) => a - b)[MOST - 1];
      found.splice(0, Infinity, ...found.filter((one) => one.away <= far).slice(0, MOST));
    }
    tip.replaceChildren();
    add(tip, "b", `${plot.at} ${written(x)}`);
    for (const { line, n } of found) {
      const row = add(tip, "div", "");
      add(row, "i", "").style.background = `var(--${line.role})`;
      add(row, "span", line.name);
      const ends = line.low && line.low[n] !== null && line.low[n] !== line.high[n] ? ` [${written(line.low[n])}, ${written(line.high[n])}]` : "";
      add(row, "strong", `${written(line.y[n])}${plot.unit}${ends}`);
    }
    const across = acrossOf(x);
    for (const [name, value] of Object.entries({ x1: across, x2: across, y1: foot, y2: top })) rule.setAttribute(name, value);
    svg.append(rule);
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), at = box.left + (across / svg.viewBox.baseVal.width) * box.width;
    const beside = at + 14 + tip.offsetWidth < document.documentElement.clientWidth ? at + 14 : at - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top + 8, window.innerHeight - tip.offsetHeight - 4))}px`;
  };
  const point = (event) => {
    const box = svg.getBoundingClientRect(), seen = svg.viewBox.baseVal;
    const across = ((event.clientX - box.left) / box.width) * seen.width;
    const nearest = places.reduce((a, b) => (Math.abs(acrossOf(b) - across) < Math.abs(acrossOf(a) - across) ? b : a));
    tell(nearest, ((event.clientY - box.top) / box.height) * seen.height);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", hide);
  const holder = svg.parentElement;
  holder.tabIndex = 0;
  holder.addEventListener("blur", hide);
  holder.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || holder.querySelector("svg[data-values]") !== svg) return;
    event.preventDefault();
    const place = now === null ? (step > 0 ? 0 : places.length - 1) : places.indexOf(now) + step;
    tell(places[Math.max(0, Math.min(place, places.length - 1))], (foot + top) / 2);
  });
}
window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
