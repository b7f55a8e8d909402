// The queue: one button a run, with its state, its status line and how far it is.
const root = element.querySelector(".jobs");
const entries = new Map(); // run id -> nodes
const groups = new Map(); // name -> heading
const empty = make("div", "empty");
let inSight = null; // the chosen run that was last brought into sight

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
      if (!groups.has(group)) groups.set(group, make("div", "group", group));
      placed.push(groups.get(group));
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
  set(empty, value.empty || "");
  place(root, placed.length ? placed : [empty]);
  if (value.chosen !== inSight && entries.has(value.chosen) && root.offsetParent) {
    inSight = value.chosen;
    const { node } = entries.get(inSight);
    const above = node.offsetTop - root.offsetTop;
    if (above < root.scrollTop) root.scrollTop = above;
    else if (above + node.offsetHeight > root.scrollTop + root.clientHeight) {
      root.scrollTop = above + node.offsetHeight - root.clientHeight;
    }
  }
}
watch("value", build);
build();
