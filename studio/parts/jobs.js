// The queue: one button a run, with its state, its status line and how far it is.
const root = element.querySelector(".jobs");
const entries = new Map(); // run id -> nodes

function entry(run) {
  const node = make("button", "job");
  node.type = "button";
  const nodes = {
    node,
    dot: make("span", "dot"),
    title: make("b", ""),
    line: make("span", "line"),
    meter: make("span", "meter"),
    done: make("i", ""),
  };
  const head = make("span", "head");
  head.append(nodes.dot, nodes.title);
  nodes.meter.append(nodes.done);
  node.append(head, nodes.line, nodes.meter);
  node.addEventListener("click", () => trigger("pick", { run }));
  return nodes;
}
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function build() {
  const value = props.value || {};
  const placed = [];
  const seen = new Set();
  let group = null;
  for (const job of value.jobs || []) {
    if (job.group !== group) {
      group = job.group;
      placed.push(make("div", "group", group));
    }
    seen.add(job.run);
    if (!entries.has(job.run)) entries.set(job.run, entry(job.run));
    const nodes = entries.get(job.run);
    nodes.node.dataset.state = job.state;
    nodes.node.dataset.run = job.run;
    nodes.node.setAttribute("aria-pressed", String(job.run === value.chosen));
    set(nodes.title, job.title);
    set(nodes.line, job.line);
    nodes.meter.hidden = job.fraction === null || job.fraction === undefined;
    nodes.done.style.width = `${Math.round(1000 * (job.fraction || 0)) / 10}%`;
    placed.push(nodes.node);
  }
  for (const run of [...entries.keys()]) if (!seen.has(run)) entries.delete(run);
  if (!placed.length) placed.push(make("div", "empty", value.empty || ""));
  const active = document.activeElement;
  root.replaceChildren(...placed);
  if (active && root.contains(active)) active.focus({ preventScroll: true });
}
watch("value", build);
build();
