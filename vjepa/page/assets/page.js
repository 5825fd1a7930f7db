"use strict";
// Charts: values on hover and by arrow keys, a logarithmic axis. Players: frames by buttons and arrow keys.
// A page without this script says the same; nothing here starts by itself, and nothing is loaded but a live run's news.

const make = (tag, content = "", attributes = {}) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = content;
  return element;
};
const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const told = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(5)));

function chart(figure) {
  const drawing = figure.querySelector("svg"), points = JSON.parse(figure.querySelector("script.points").textContent);
  const [left, top, right, bottom] = points.box, steps = [...new Set(points.series.flatMap((one) => one.x))].sort((a, b) => a - b);
  let isLog = points.isLog, place = -1;
  const at = (step) => left + ((step - points.x[0]) / (points.x[1] - points.x[0])) * (right - left);
  const scale = (value) => (isLog ? Math.log10(value) : value);
  const high = (value) => {
    const [low, most] = isLog ? points.logY.map(Math.log10) : points.y;
    return bottom - ((scale(value) - low) / (most - low)) * (bottom - top);
  };
  const known = (value) => value !== null && (!isLog || value > 0);
  const path = (series) => series.x.map((step, i) => (!known(series.y[i]) ? "" :
    `${i && known(series.y[i - 1]) ? "L" : "M"}${at(step).toFixed(1)} ${high(series.y[i]).toFixed(1)}`)).join("");

  const redraw = () => {
    drawing.querySelectorAll(".line").forEach((line) => line.setAttribute("d", path(points.series[line.dataset.series])));
    drawing.querySelectorAll(".band").forEach((band) => band.setAttribute("visibility", isLog ? "hidden" : "visible"));
    drawing.querySelectorAll(".reference").forEach((line) => {
      const y = known(+line.dataset.y) ? high(+line.dataset.y) : -99;
      line.setAttribute("y1", y);
      line.setAttribute("y2", y);
    });
    const ticks = drawing.querySelector(".ticks");
    ticks.replaceChildren(...(isLog ? points.logTicks : points.ticks).flatMap((value) => {
      const label = svg("text", { x: left - 6, y: high(value) + 4, "text-anchor": "end" });
      label.textContent = told(value);
      return [svg("line", { class: "grid", x1: left, x2: right, y1: high(value), y2: high(value) }), label];
    }));
  };
  const tip = make("div", "", { class: "tip", hidden: "", role: "status" });
  const cursor = svg("line", { class: "at", y1: top, y2: bottom, visibility: "hidden" });
  drawing.append(cursor);
  figure.append(tip);

  const show = (number) => {
    place = Math.min(Math.max(number, 0), steps.length - 1);
    const step = steps[place], x = at(step);
    const lines = points.series.map((series) => {
      const i = series.x.indexOf(step);
      return i < 0 ? null : `${series.name}  ${series.y[i] === null ? "not finite" : told(series.y[i])}`;
    });
    tip.textContent = [`${points.along} ${told(step)}`, ...lines.filter((line) => line !== null)].join("\n");
    tip.hidden = false;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const size = drawing.getBoundingClientRect(), width = drawing.viewBox.baseVal.width;
    const wanted = (x / width) * size.width + 12;
    tip.style.left = `${Math.max(0, wanted + tip.offsetWidth > size.width ? wanted - tip.offsetWidth - 24 : wanted)}px`;
    tip.style.top = `${drawing.offsetTop + 8}px`;
  };
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  drawing.addEventListener("pointermove", (event) => {
    const size = drawing.getBoundingClientRect(), width = drawing.viewBox.baseVal.width;
    const x = ((event.clientX - size.left) / size.width) * width;
    let low = 0, most = steps.length - 1;
    while (low < most) {
      const middle = (low + most) >> 1;
      if (at(steps[middle]) < x) low = middle + 1;
      else most = middle;
    }
    show(low && Math.abs(at(steps[low - 1]) - x) < Math.abs(at(steps[low]) - x) ? low - 1 : low);
  });
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const goal = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (goal === undefined) return;
    event.preventDefault();
    show(goal);
  });
  if (points.logTicks) {
    const button = make("button", "log axis", { type: "button", "aria-pressed": isLog });
    button.addEventListener("click", () => {
      isLog = !isLog;
      button.setAttribute("aria-pressed", isLog);
      redraw();
    });
    figure.querySelector("figcaption").append(button);
  }
}

async function player(figure) {
  const names = JSON.parse(figure.dataset.names), width = +figure.dataset.width, height = +figure.dataset.height;
  const pictures = [...figure.querySelectorAll(".strip img")];
  await Promise.all(pictures.map((picture) => picture.decode()));
  const [frames] = pictures, enlarged = Math.max(1, Math.min(3, Math.round(176 / Math.max(width, height))));
  let now = 0, timer = 0;
  const canvases = pictures.map((picture) => {
    const canvas = make("canvas", "", { width: width * enlarged, height: height * enlarged, role: "img" });
    canvas.setAttribute("aria-label", picture.previousElementSibling.textContent);
    picture.after(canvas);
    return canvas.getContext("2d");
  });
  const says = make("output"), opacity = make("input", "", { type: "range", min: 0, max: 100, value: 100 });
  const draw = () => {
    canvases.forEach((drawing, i) => {
      const picture = pictures[i], { width: across, height: down } = drawing.canvas;
      drawing.imageSmoothingEnabled = false;
      drawing.globalAlpha = 1;
      drawing.clearRect(0, 0, across, down);
      drawing.drawImage(frames, now * width, 0, width, height, 0, 0, across, down);
      if (!i) return;
      const slots = picture.dataset.slots.split(",").map(Number), num = Math.max(...slots) + 1;
      const cells = picture.naturalWidth / num;
      if (!picture.classList.contains("covers")) drawing.globalAlpha = opacity.value / 100;
      drawing.drawImage(picture, slots[now] * cells, 0, cells, picture.naturalHeight, 0, 0, across, down);
    });
    says.textContent = `${names[now]} (${now + 1} of ${names.length})`;
  };
  const step = (to) => {
    now = (to + names.length) % names.length;
    figure.dataset.now = now;
    draw();
  };
  const controls = make("div", "", { class: "controls" });
  const button = (words, label, act) => {
    const made = make("button", words, { type: "button", "aria-label": label });
    made.addEventListener("click", act);
    controls.append(made);
    return made;
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "play";
    play.setAttribute("aria-label", "play");
  };
  button("◂", "one frame back", () => (stop(), step(now - 1)));
  const play = button("play", "play", () => {
    if (timer) return stop();
    timer = setInterval(() => step(now + 1), 250);
    play.textContent = "stop";
    play.setAttribute("aria-label", "stop");
  });
  button("▸", "one frame on", () => (stop(), step(now + 1)));
  if (pictures.some((picture, i) => i && !picture.classList.contains("covers"))) {
    const label = make("label", "colours over frames ");
    opacity.addEventListener("input", draw);
    label.append(opacity);
    controls.append(label);
  }
  controls.append(says);
  figure.append(controls);
  figure.addEventListener("keydown", (event) => {
    const goal = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: names.length - 1 }[event.key];
    if (goal === undefined || event.target === opacity) return;
    event.preventDefault();
    stop();
    step(goal);
  });
  figure.classList.add("runs");
  step(0);
}

function begin(root) {
  root.querySelectorAll("figure.chart").forEach(chart);
  root.querySelectorAll("figure.player").forEach(player);
}

async function follow(state) {
  let from = +state.dataset.offset;
  for (;;) {
    await new Promise((wake) => setTimeout(wake, 500));
    const answer = await fetch(`new?from=${from}`).catch(() => null);
    state.textContent = answer ? "live" : "the server has gone; the page shows what was there";
    if (answer?.status !== 200) continue;
    const news = await answer.json();
    from = news.offset;
    document.title = news.title;
    for (const [name, part] of Object.entries(news.parts)) {
      const old = document.getElementById(name), holder = make("template");
      holder.innerHTML = part;
      const fresh = holder.content.firstElementChild;
      if (!old || !fresh) continue;
      old.replaceWith(fresh);
      begin(fresh);
    }
  }
}

begin(document);
const live = document.getElementById("live");
if (live && "live" in document.body.dataset) follow(live);
