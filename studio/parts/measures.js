// How much each take has moved: its name, how much moves in it, and a bar for each measure.
const root = element.querySelector(".measures");

function head(bars) {
  const row = make("div", "heads");
  row.append(make("span", "", "take"), make("span", "", "movement"));
  for (const bar of bars) row.append(make("span", "", bar.name));
  row.setAttribute("aria-hidden", "true"); // each cell says its own name
  return row;
}

function cell(name, text, bar) {
  const node = make("div", bar ? "value" : "value moves");
  node.append(make("span", "name", name), make("span", "number", text));
  if (bar) {
    const track = make("i", "track");
    const fill = make("i", "");
    fill.style.width = `${100 * Math.min(1, Math.max(0, bar.value || 0))}%`;
    fill.style.background = bar.colour;
    track.append(fill);
    node.append(track);
  }
  return node;
}

function build() {
  const takes = (props.value || {}).takes || [];
  root.hidden = !takes.length;
  const rows = takes.map((take) => {
    const row = make("li", "take");
    const name = make("div", "who");
    name.append(make("b", "", take.label));
    if (take.mark) name.append(make("em", "", take.mark));
    if (take.sub) name.append(make("span", "", take.sub));
    row.append(name, cell("movement", take.moves));
    for (const bar of take.bars) row.append(cell(bar.name, bar.text, bar));
    return row;
  });
  const list = make("ul", "");
  list.append(...rows);
  root.replaceChildren(...(takes.length ? [head(takes[0].bars), list] : []));
}
watch("value", build);
build();
