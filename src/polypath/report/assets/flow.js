// Pointing at an expert, or moving to it by keyboard, brings out what goes through it.
for (const flow of document.querySelectorAll(".flow")) {
  const paths = [...flow.querySelectorAll("path")];
  const point = (event) => {
    const node = event.target.dataset?.node;
    flow.classList.toggle("pointed", node !== undefined);
    for (const path of paths) {
      path.classList.toggle("through", [path.dataset.from, path.dataset.to].includes(node));
    }
  };
  flow.addEventListener("pointerover", point);
  flow.addEventListener("focusin", point);
  flow.addEventListener("pointerleave", point);
  flow.addEventListener("focusout", () => flow.classList.remove("pointed"));
}
