// Tokens coloured by the experts of a layer; picking an expert leaves only its own in colour.
for (const explorer of document.querySelectorAll(".explorer")) {
  const passages = JSON.parse(explorer.querySelector("script").textContent);
  const texts = [...explorer.querySelectorAll(".passage-text")];
  const form = explorer.querySelector("form");
  const summary = explorer.querySelector(".summary");
  const card = explorer.querySelector(".card");
  const experts = [...explorer.querySelectorAll(".expert input")];
  const colours = Number(explorer.dataset.colours);
  const state = { passage: 0, layer: 0, expert: null, token: 0 };

  const passage = () => passages[state.passage];
  const layer = () => passage().layers[state.layer];
  const spans = () => texts[state.passage].children;
  const colour = (expert) => `e${expert % colours}`;
  const percent = (part, whole) => `${whole ? (100 * part / whole).toFixed(1) : 0} %`;
  const element = (name, className, text) => {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text ?? "";
    return made;
  };

  const paint = () => {
    const { experts: chosen, weights } = layer();
    [...spans()].forEach((span, i) => {
      const slot = state.expert === null ? 0 : chosen[i].indexOf(state.expert);
      const picked = slot >= 0 && slot < chosen[i].length;
      span.className = picked ? colour(chosen[i][slot]) : "out";
      span.classList.toggle("own", picked && state.expert !== null);
      span.classList.toggle("active", i === state.token);
      span.ariaSelected = picked && state.expert !== null;
      const strength = picked ? weights[i][slot] / Math.max(...weights[i], 1e-9) : 0;
      span.style.setProperty("--strength", state.expert === null ? 1 : strength.toFixed(2));
    });
  };

  const describe = () => {
    const { experts: chosen } = layer();
    if (state.expert === null) {
      summary.textContent =
        `All experts of this layer over ${chosen.length} tokens.`;
      return;
    }
    const own = chosen.map((row, i) => [row, i]).filter(([row]) => row.includes(state.expert));
    const kinds = new Map();
    for (const [, i] of own) kinds.set(passage().kinds[i], (kinds.get(passage().kinds[i]) ?? 0) + 1);
    const most = [...kinds].sort((a, b) => b[1] - a[1]).slice(0, 4);
    const listed = most.map(([kind, count]) => `${kind} ${percent(count, own.length)}`).join(", ");
    summary.textContent = `Expert ${state.expert} serves ${own.length} of ${chosen.length} tokens ` +
      `(${percent(own.length, chosen.length)})${listed && `: ${listed}`}.`;
  };

  const look = () => {
    const { experts: chosen, weights } = layer();
    const i = state.token;
    const list = element("ul", "served");
    chosen[i].forEach((expert, slot) => {
      const item = element("li", colour(expert));
      const bar = element("span", "bar");
      bar.style.setProperty("--part", Math.min(1, Math.max(0, weights[i][slot])));
      item.append(element("span", "chip", expert), bar, element("span", "weight", weights[i][slot].toFixed(3)));
      list.append(item);
    });
    const text = spans()[i].textContent.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
    card.replaceChildren(
      element("p", "token", text.replaceAll(" ", "␣")),
      element("p", "kind", passage().kinds[i]),
      chosen[i].length ? list : element("p", "kind", "no expert serves it"),
    );
    texts[state.passage].setAttribute("aria-activedescendant", spans()[i].id);
    spans()[i].setAttribute("aria-description", `${passage().kinds[i]}, ${
      chosen[i].map((e, s) => `expert ${e} weight ${weights[i][s]}`).join(", ")}`);
  };

  const activate = (i) => {
    spans()[state.token].classList.remove("active");
    state.token = i;
    spans()[i].classList.add("active");
    look();
  };

  const pick = (expert) => {
    state.expert = expert;
    for (const input of experts) input.checked = input.value === String(expert ?? "");
    paint();
    describe();
  };
  const pickOf = (i) => {
    const first = layer().experts[i][0];
    pick(first === undefined || first === state.expert ? null : first);
  };

  // The token of the line above or below that is nearest sideways.
  const vertical = (sign) => {
    const boxes = [...spans()].map((span) => span.getClientRects()[0]);
    const from = boxes[state.token];
    const middle = (box) => (box.left + box.right) / 2;
    let best = state.token, least = Infinity;
    boxes.forEach((box, i) => {
      const ahead = (box.top - from.top) * sign;
      if (ahead < from.height / 2) return;
      const cost = 1e4 * Math.round(ahead) + Math.abs(middle(box) - middle(from));
      if (cost < least) [best, least] = [i, cost];
    });
    return best;
  };
  const MOVES = {
    ArrowLeft: () => state.token - 1,
    ArrowRight: () => state.token + 1,
    ArrowUp: () => vertical(-1),
    ArrowDown: () => vertical(1),
    Home: () => 0,
    End: () => spans().length - 1,
  };

  const refresh = () => {
    for (const input of experts) input.parentElement.hidden = Number(input.value) >= layer().count;
    if (state.expert !== null && state.expert >= layer().count) state.expert = null;
    texts.forEach((text, i) => { text.hidden = i !== state.passage; });
    pick(state.expert);
    if (spans().length) look();
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", ({ target }) => {
    if (target.name.endsWith("-expert")) return pick(target.value === "" ? null : Number(target.value));
    if (target.name.endsWith("-layer")) state.layer = Number(target.value);
    if (target.name.endsWith("-passage")) Object.assign(state, { passage: Number(target.value), token: 0 });
    refresh();
  });
  for (const text of texts) {
    const index = (event) => [...text.children].indexOf(event.target.closest("[role=option]"));
    text.addEventListener("pointerover", (event) => index(event) >= 0 && activate(index(event)));
    text.addEventListener("click", (event) => {
      if (index(event) < 0) return;
      activate(index(event));
      pickOf(index(event));
    });
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return pick(null);
      if (event.key === "Enter" || event.key === " ") pickOf(state.token);
      else if (event.key in MOVES) {
        activate(Math.max(0, Math.min(MOVES[event.key](), spans().length - 1)));
        spans()[state.token].scrollIntoView({ block: "nearest" });
      } else return;
      event.preventDefault();
    });
  }
  if (passages.length && Object.keys(passages[0].layers).length) refresh();
}
