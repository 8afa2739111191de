// Texts of a page that are hard to read: less than 4.5 to 1 (3 to 1 from 24 pixels on, or 18.7 in bold) against what is behind them (WCAG 2.2, 1.4.3).
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { // of any CSS color, each from 0 to 1
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const over = (top, below) => [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3]));
  const behind = (node) => {
    if (!node) return matchMedia("(prefers-color-scheme: dark)").matches && getComputedStyle(document.documentElement).colorScheme.includes("dark") ? [0.07, 0.07, 0.07] : [1, 1, 1];
    const color = rgba(getComputedStyle(node).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(node.parentElement));
  };
  const light = (color) => {
    const [r, g, b] = color.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const shade = (node) => { // how much of it is seen, all around it counted
    let seen = 1;
    for (let up = node; up; up = up.parentElement) seen *= Number(getComputedStyle(up).opacity);
    return seen;
  };
  const faint = [];
  for (const node of document.body.querySelectorAll("*")) {
    const text = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE).map((child) => child.data.trim()).join(" ").trim();
    const style = getComputedStyle(node);
    if (!text || !node.getClientRects().length || style.visibility !== "visible" || !shade(node)) continue;
    if (node.closest("script, style, noscript, [aria-hidden=true]:not(svg)")) continue;
    const below = behind(node);
    const color = rgba(node.closest("svg") ? style.fill : style.color);
    color[3] *= shade(node);
    const [most, least] = [light(over(color, below)), light(below)].sort((a, b) => b - a);
    const contrast = (most + 0.05) / (least + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.6 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5) - 0.01) {
      faint.push(`${node.tagName.toLowerCase()} ${node.getAttribute("class") ?? ""} ${JSON.stringify(text.slice(0, 40))}: ${contrast.toFixed(2)}`);
    }
  }
  return faint;
})()
