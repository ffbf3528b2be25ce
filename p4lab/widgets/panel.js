// A panel of labelled controls and readouts, described by the kernel; it reports what was touched and shows what it is told.

const CONTROLS = new Set(["button", "input", "select"]);

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  // Keys are for the control that has the focus: arrows would fold the notebook's cells, Enter would edit them.
  if (CONTROLS.has(tag)) node.dataset.lmSuppressShortcuts = "true";
  return node;
}

/** Write a text, unless it stands there already: the page's layout is computed anew for every text that is written. */
function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

let serial = 0;

/** Call `commit` when the user is done with a field: Enter, or another control gets the focus. */
function onCommit(input, commit) {
  let committed = input.value;
  const done = () => { if (input.value !== committed) commit((committed = input.value)); };
  input.addEventListener("focus", () => { committed = input.value; });
  for (const kind of ["change", "blur"]) input.addEventListener(kind, done);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    done();
    input.blur();
  });
}

/** Follow a drag live, but not with every pixel: `send` at once, then at most every 60 ms, and where it ends. */
function follow(send) {
  let resting = true, again = false;
  function moved() {
    again = !resting;
    if (!resting) return;
    resting = false;
    send();
    setTimeout(() => {
      resting = true;
      if (again) moved();
    }, 60);
  }
  return { moved };
}

/**
 * Show what the kernel says, but not under the user's finger: what arrives within `ms` of a touch may have been said
 * before the kernel heard of it. The last of that is shown afterwards.
 */
function patient(ms, show) {
  let until = -Infinity, told, waiting = false;
  function settle() {
    const left = until - performance.now();
    waiting = left > 0;
    if (waiting) setTimeout(settle, left);
    else show(told);
  }
  return {
    touched() { until = performance.now() + ms; },
    show(value) {
      told = value;
      if (!waiting) settle();
    },
  };
}

/** Kinds of items: each makes its nodes and returns `show(value, text)`. `tell` reports a new value to the kernel. */
const KINDS = {
  title(item, box) {
    box.append(make("h2", "p4-title", item.label), make("p", "p4-subtitle", item.help));
    return () => {};
  },
  button(item, box, tell) {
    const button = make("button", "p4-button", item.label);
    button.type = "button";
    button.title = item.help;
    button.dataset.look = item.look;
    button.addEventListener("click", () => tell(true));
    box.append(button);
    return (value) => {
      if (value?.label) write(button, value.label);
      if (value?.look) button.dataset.look = value.look;
    };
  },
  badge(item, box) {
    const badge = make("span", "p4-badge", "");
    badge.setAttribute("role", "status");
    box.append(badge);
    return (value) => {
      write(badge, value);
      badge.dataset.state = value;
    };
  },
  readout(item, box) {
    const value = make("b", "p4-value", "–"), unit = make("span", "p4-unit", item.unit);
    box.title = item.help;
    box.append(make("span", "p4-name", item.label), value, unit);
    return (shown) => {
      write(value, shown.value ?? shown);
      if (shown.unit !== undefined) write(unit, shown.unit);
    };
  },
  message(item, box) {
    const text = make("span", "p4-message", "");
    text.setAttribute("role", "alert");
    box.append(text);
    return (value) => {
      write(text, value.text);
      text.title = value.text;
      text.dataset.level = value.level;
    };
  },
  slider(item, box, tell) {
    const { label, value: out } = heading(item, box);
    const input = make("input", "p4-slider");
    Object.assign(input, { type: "range", min: 0, max: item.choices.length - 1, step: 1, id: label.htmlFor });
    const read = () => {
      out.textContent = item.texts[input.value] + (item.unit ? ` ${item.unit}` : "");
      input.setAttribute("aria-valuetext", out.textContent);
      input.style.setProperty("--fill", `${(100 * input.value) / Math.max(1, input.max)}%`);
    };
    const shown = patient(1000, (value) => {
      const nearest = item.choices.reduce((best, c, i) => (distance(c, value) < distance(item.choices[best], value) ? i : best), 0);
      input.value = nearest;
      read();
    });
    const following = follow(() => tell(item.choices[input.value]));
    input.addEventListener("input", () => {
      shown.touched();
      read();
      following.moved();
    });
    box.append(input);
    return shown.show;
  },
  choice(item, box, tell) {
    const { label } = heading(item, box);
    const select = make("select", "p4-select");
    select.id = label.htmlFor;
    item.choices.forEach((_, i) => select.append(new Option(item.texts[i], i)));
    const shown = patient(1000, (value) => { select.value = item.choices.indexOf(value); });
    select.addEventListener("change", () => {
      shown.touched();
      tell(item.choices[select.value]);
    });
    box.append(select);
    return shown.show;
  },
  segments(item, box, tell) {
    const { label } = heading(item, box);
    const row = make("div", "p4-segments");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", label.textContent);
    const buttons = item.choices.map((choice, i) => {
      const button = make("button", "", item.texts[i]);
      button.type = "button";
      button.addEventListener("click", () => tell(choice));
      return button;
    });
    row.append(...buttons);
    box.append(row);
    return (value) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", item.choices[i] === value));
  },
  toggle(item, box, tell) {
    const { label } = heading(item, box);
    const input = make("input", "p4-toggle");
    Object.assign(input, { type: "checkbox", id: label.htmlFor });
    input.setAttribute("role", "switch");
    const shown = patient(1000, (value) => { input.checked = value; });
    input.addEventListener("change", () => {
      shown.touched();
      tell(input.checked);
    });
    box.append(input);
    return shown.show;
  },
  number(item, box, tell) {
    const { label } = heading(item, box);
    const input = make("input", "p4-number");
    Object.assign(input, { type: "number", min: 0, step: 1, id: label.htmlFor });
    onCommit(input, () => tell(input.valueAsNumber));
    box.append(input);
    return (value) => { if (document.activeElement !== input) input.value = value; };
  },
  text(item, box, tell) {
    const { label } = heading(item, box);
    const input = make("input", "p4-text");
    Object.assign(input, { type: "text", id: label.htmlFor, spellcheck: false, autocomplete: "off" });
    onCommit(input, tell);
    box.append(input);
    if (item.look === "copy") {
      const button = make("button", "p4-button", "Copy");
      button.type = "button";
      button.addEventListener("click", () => {
        input.select();
        // Without https there is no clipboard; the text is selected then.
        navigator.clipboard?.writeText(input.value).then(() => {
          button.textContent = "Copied";
          setTimeout(() => { button.textContent = "Copy"; }, 1200);
        }, () => {});
      });
      box.append(button);
    }
    return (value) => { if (document.activeElement !== input) input.value = value; };
  },
  upload(item, box, tell, sendFile) {
    const button = make("button", "p4-button", item.label), input = make("input", "p4-file");
    button.type = "button";
    button.title = item.help;
    Object.assign(input, { type: "file", accept: item.choices.join(), hidden: true });
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", async () => {
      if (input.files.length) sendFile(await input.files[0].arrayBuffer());
      input.value = "";
    });
    box.append(button, input);
    return () => {};
  },
  scrubber(item, box, tell) {
    const { label, value: out } = heading(item, box);
    const input = make("input", "p4-slider p4-scrubber");
    Object.assign(input, { type: "range", min: 0, max: 0, step: 1, value: 0, id: label.htmlFor });
    box.append(input);
    let moments = [];
    const read = () => {
      const at = moments[input.value];
      out.textContent = at === undefined ? "now" : `step ${at.toLocaleString("en-US")}`;
      input.setAttribute("aria-valuetext", out.textContent);
      input.style.setProperty("--fill", `${(100 * input.value) / Math.max(1, input.max)}%`);
    };
    const shown = patient(400, (value) => {
      moments = value.moments;
      input.max = moments.length; // the place after the last moment is the present
      input.value = value.shown === null ? moments.length : moments.indexOf(value.shown);
      read();
    });
    const following = follow(() => tell(moments[input.value] ?? null));
    input.addEventListener("input", () => {
      shown.touched();
      read();
      following.moved();
    });
    return shown.show;
  },
  table(item, box) {
    const table = make("table", "p4-runs-table p4-table");
    const caption = make("caption", "", item.label), body = make("tbody");
    table.append(caption, body);
    box.append(table);
    const line = (kind, texts) => {
      const tr = make("tr");
      tr.append(...texts.map((text) => make(kind, "", text)));
      return tr;
    };
    return (value) => {
      caption.textContent = value.label;
      const head = line("th", value.columns);
      value.help.forEach((text, i) => { head.children[i].title = text; });
      body.replaceChildren(head, ...value.rows.map((row) => {
        const tr = line("td", row.cells), chip = make("i", "p4-chip");
        chip.style.background = row.color;
        tr.firstChild.prepend(chip);
        tr.dataset.active = row.active ?? false;
        return tr;
      }));
    };
  },
  runs(item, box, tell) {
    const table = make("table", "p4-runs-table");
    box.append(table);
    let drawn = "", shape = "";
    function row(run) {
      const tr = make("tr");
      tr.dataset.active = run.active;
      const chip = make("i", "p4-chip"), name = make("input", "p4-text"), origin = make("span", "p4-origin", run.origin);
      chip.style.background = run.color;
      name.value = run.name;
      name.setAttribute("aria-label", `Name of ${run.name}`);
      onCommit(name, (text) => tell({ action: "rename", number: run.number, name: text }));
      const first = make("td", "p4-run-name");
      first.append(chip, name, origin);
      const button = (text, action, help) => {
        const node = make("button", "p4-button p4-small", text);
        Object.assign(node, { type: "button", title: help, disabled: run.active });
        node.setAttribute("aria-label", `${help}: ${run.name}`);
        node.addEventListener("click", () => tell({ action, number: run.number }));
        return node;
      };
      const last = make("td", "p4-run-actions");
      if (run.active) last.append(make("span", "p4-flag", "active"));
      else last.append(button("Go on", "select", "Make this the active run"), button("✕", "remove", "Remove this run"));
      tr.append(first, ...run.cells.map((text) => make("td", "p4-cell", text)), last);
      return tr;
    }
    return (value) => {
      const text = JSON.stringify(value);
      if (text === drawn || (table.contains(document.activeElement) && document.activeElement.matches("input"))) return;
      drawn = text;
      const now = JSON.stringify([value.columns, value.rows.map((run) => ({ ...run, cells: 0 }))]);
      if (now === shape) { // new numbers in the same table: no new layout for them
        const cells = table.querySelectorAll(".p4-cell");
        value.rows.flatMap((run) => run.cells).forEach((text, i) => {
          if (cells[i].textContent !== text) cells[i].textContent = text;
        });
        return;
      }
      shape = now;
      const head = make("tr");
      head.append(...["run", ...value.columns, ""].map((name) => make("th", "", name)));
      table.replaceChildren(head, ...value.rows.map(row));
    };
  },
};

/** Distance on a scale that is logarithmic on both sides of 0. */
const distance = (a, b) => Math.abs(Math.asinh(1e6 * a) - Math.asinh(1e6 * b));

function heading(item, box) {
  const label = make("label", "p4-label", item.label), value = make("output", "p4-setting", "");
  label.htmlFor = `p4-control-${serial++}`;
  box.title = item.help;
  box.append(label, make("span", "p4-flag", item.live ? "" : "at reset"), value);
  return { label, value };
}

function saveFile(name, content) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export default () => {
  const views = new Map();
  let spec = null, values = {}, disabled = [], pending = [], line = null, send = () => {}, sendFile = () => {};

  function receive(message, buffers) {
    if (message.download) saveFile(message.download, buffers[0]);
    spec = message.spec ?? spec;
    values = message.values ?? values;
    disabled = message.disabled ?? disabled;
    pending = message.pending ?? pending;
  }

  function build(el) {
    const shows = new Map();
    el.dataset.direction = spec.direction;
    el.replaceChildren(...spec.groups.map((group) => {
      const section = make("section", "p4-group");
      if (group.label) section.append(make("h3", "", group.label));
      for (const item of group.items) {
        const box = make("div", `p4-item p4-item-${item.kind}`);
        box.dataset.name = item.name;
        box.dataset.look = item.look;
        if (item.color) box.style.borderLeftColor = item.color;
        shows.set(item.name, { box, show: KINDS[item.kind](item, box, (value) => send(item.name, value), (file) => sendFile(item.name, file)) });
        section.append(box);
      }
      return section;
    }), make("div", "p4-hint", "The kernel is gone. Run this cell again to get a living lab."));
    return shows;
  }

  function paint() {
    if (!spec) return;
    for (const [el, view] of views) {
      view.shows ??= build(el);
      for (const [name, { show }] of view.shows) if (name in values) show(values[name]);
      const flags = JSON.stringify([pending, disabled]);
      if (view.flags === flags) continue;
      view.flags = flags;
      for (const [name, { box }] of view.shows) {
        box.dataset.pending = pending.includes(name);
        const off = disabled.includes(name);
        for (const node of box.querySelectorAll("button, input, select")) if (!node.closest("table")) node.disabled = off;
      }
    }
  }

  function initialize({ model }) {
    send = (name, value) => model.send({ set: [name, value] });
    sendFile = (name, file) => model.send({ upload: name }, undefined, [file]);
    line = connect(model, { receive, paint });
  }

  function render({ el }) {
    el.classList.add("p4-panel");
    views.set(el, { shows: null });
    line.repaint();
    return () => views.delete(el);
  }

  return { initialize, render };
};
