// Of several views, the one is shown whose radio button is chosen.
for (const group of document.querySelectorAll(".views")) {
  const views = group.querySelectorAll(".view");
  group.querySelector("form")?.addEventListener("change", (event) => {
    views.forEach((view, i) => { view.hidden = i !== Number(event.target.value); });
  });
}
