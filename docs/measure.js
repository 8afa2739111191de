// What of a page is too wide: elements over its sides, and boxes that a reader has to scroll sideways.
(() => {
  const most = document.documentElement.clientWidth;
  const name = (node) => [node.tagName.toLowerCase(), node.getAttribute("class"), node.closest("section")?.id].filter(Boolean).join(" ");
  const cut = (node) => { // by a box around it that scrolls or hides what is wider
    for (let up = node.parentElement; up && up !== document.body; up = up.parentElement) {
      if (getComputedStyle(up).overflowX !== "visible") return true;
    }
    return false;
  };
  const seen = [...document.body.querySelectorAll("*")].filter((node) => node.getClientRects().length);
  const over = seen.filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width > 0 && (box.right > most + 1 || (box.left < -1 && box.right > 1)) && !cut(node); // what lies beside the page is folded away
  });
  const scrolled = seen.filter(
    (node) => node.clientWidth && node.scrollWidth > node.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(node).overflowX)
  );
  return {
    over: over.map((node) => `${name(node)}: to ${Math.round(node.getBoundingClientRect().right)} of ${most}`),
    scrolled: scrolled.map((node) => `${name(node)}: ${node.scrollWidth} in ${node.clientWidth}`),
  };
})()
