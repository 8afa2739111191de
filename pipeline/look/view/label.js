"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const button = [...document.querySelectorAll("button[name=verdict]")].find((each) => each.value === event.key.toLowerCase());
  if (button) {
    event.preventDefault();
    button.click();
  }
});
