// The slider of a chart, and the pointer over it, choose where the legend reads the lines.
for (const chart of document.querySelectorAll(".curves")) {
  const series = JSON.parse(chart.querySelector("script").textContent);
  const plots = [...chart.querySelectorAll(".plot")];
  const slider = chart.querySelector("input[type=range]");
  const [where, ...values] = chart.querySelectorAll("output");
  const steps = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
  const shown = () => plots.find((plot) => !plot.hidden);
  const say = (value) => Number(value.toPrecision(4)).toLocaleString("en").replace("-", "−");

  const closest = (places, x) => {
    let best = 0;
    places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
    return best;
  };
  const read = () => {
    const x = steps[slider.value];
    where.textContent = say(x);
    slider.setAttribute("aria-valuetext", say(x));
    const { low, high } = shown().dataset;
    const rule = shown().querySelector(".rule");
    rule.hidden = slider.value === slider.max;
    rule.style.left = `${100 * (x - low) / (high - low)}%`;
    series.forEach((line, i) => {
      const at = closest(line.x, x);
      const has = line.x.length && line.mean[at] !== null;
      values[i].textContent = has ? say(line.mean[at]) : "–";
      if (has && line.low[at] !== null) {
        values[i].textContent += ` (${say(line.low[at])} to ${say(line.high[at])})`;
      }
    });
  };

  if (steps.length) {
    slider.max = steps.length - 1;
    slider.value = slider.max;
    slider.addEventListener("input", read);
    for (const plot of plots) {
      plot.querySelector(".area").addEventListener("pointermove", (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const { low, high } = plot.dataset;
        const part = (event.clientX - box.left) / box.width;
        slider.value = closest(steps, Number(low) + part * (high - low));
        read();
      });
    }
    chart.querySelector("form")?.addEventListener("change", read);
    read();
  }
}
