// What the page does by itself: the read-out of the charts, and names for buttons that gradio leaves without one.
(() => {
  const tip = document.createElement("div");
  tip.className = "tb-tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");

  // The points of a path in the units of the drawing: "M0,512L3,510" -> [[0, 512], [3, 510]].
  const points = (path) => path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(",").map(parseFloat));
  const nearest = (found, x) => found.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
  const written = (value) => new Intl.NumberFormat(document.documentElement.lang || "en",
    Math.abs(value) < 1e-3 && value ? { notation: "scientific", maximumSignificantDigits: 3 } : { maximumSignificantDigits: 4 }).format(value);

  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest?.(".tb-chart svg[data-scale]");
    if (!svg) { tip.hidden = true; return; }
    const [x0, x1, y0, y1] = svg.dataset.scale.split(" ").map(Number);
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 1000;
    let step = null;
    const lines = [...svg.querySelectorAll("path[data-name]")].map((path) => {
      const point = nearest(points(path), x);
      step ??= Math.round(x0 + (point[0] / 1000) * (x1 - x0));
      return [path.dataset.name, written(y0 + (1 - point[1] / 1000) * (y1 - y0))];
    });
    if (!lines.length) return;
    tip.replaceChildren(...[["", written(step)], ...lines].map(([name, value]) => {
      const line = document.createElement("div");
      line.textContent = name ? `${name}  ${value}` : value;
      return line;
    }));
    document.querySelector(".gradio-container")?.append(tip);
    tip.hidden = false;
    const left = Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8);
    tip.style.transform = `translate(${left}px, ${Math.max(8, event.clientY - tip.offsetHeight - 12)}px)`;
  }, { passive: true });
})();
