"use strict";
// One tooltip for everything with data-tip, and arrow keys inside everything with data-rove.
{
  const tip = document.getElementById("tip");

  let shown = null;

  const place = () => {
    if (!shown) return;
    const box = shown.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(left, room))}px`;
    const above = box.top - tip.offsetHeight - 8;
    tip.style.top = `${above > 0 ? above : box.bottom + 8}px`;
  };
  const show = (target) => {
    shown = target;
    tip.hidden = !target;
    tip.textContent = target?.dataset.tip;
    place();
  };
  const hide = () => show(null);
  const tipped = (event) => event.target.closest?.("[data-tip]");

  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => show(tipped(event)));
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", place, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  const DIRECTIONS = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  };
  const middle = (item) => {
    const box = item.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  // The nearest item in a direction; sideways distance counts threefold.
  const nearest = (items, from, [dx, dy]) => {
    const [x, y] = middle(from);
    let best = null, least = Infinity;
    for (const item of items) {
      const [a, b] = middle(item);
      const ahead = (a - x) * dx + (b - y) * dy;
      const aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      if (ahead > 1 && ahead + 3 * aside < least) [best, least] = [item, ahead + 3 * aside];
    }
    return best;
  };

  for (const group of document.querySelectorAll("[data-rove]")) {
    const items = [...group.querySelectorAll("[data-tip]")];
    items.forEach((item, i) => { item.tabIndex = i ? -1 : 0; });
    group.addEventListener("keydown", (event) => {
      const direction = DIRECTIONS[event.key];
      if (!direction || !event.target.dataset.tip) return;
      event.preventDefault();
      const next = nearest(items, event.target, direction);
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
}
