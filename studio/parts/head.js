// What is looked at, and how it stands, in one sentence.
const root = element.querySelector(".head");
const title = make("div", "title");
const kind = make("div", "kind");
const line = make("div", "line");
const meter = make("div", "meter");
const done = make("i", "");
line.setAttribute("role", "status");
meter.append(done);
root.append(title, kind, line, meter);
function build() {
  const value = props.value || {};
  root.dataset.state = value.state || "none";
  for (const [node, text] of [[title, value.title], [kind, value.kind], [line, value.line]]) {
    if (node.textContent !== (text || "")) node.textContent = text || "";
    node.hidden = !text;
  }
  meter.hidden = value.fraction === null || value.fraction === undefined;
  done.style.width = `${Math.round(1000 * (value.fraction || 0)) / 10}%`;
}
watch("value", build);
build();
