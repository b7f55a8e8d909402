// What a model will see of clips: three frames of each, in a row.
const root = element.querySelector(".frames");

function strip(clip) {
  const node = make("li", "clip-strip");
  const head = make("div", "head");
  head.append(make("b", "", clip.name), make("span", "", clip.facts));
  node.append(head);
  if (clip.text) {
    const words = make("div", "text", clip.text);
    words.title = clip.text;
    node.append(words);
  }
  const row = make("div", "row");
  for (const picture of clip.pictures || []) {
    const figure = make("figure", "");
    const image = make("img", "");
    image.src = picture.look;
    image.alt = `${clip.name}, ${picture.number}`;
    figure.append(image, make("figcaption", "", picture.number));
    row.append(figure);
  }
  node.append(clip.problem ? make("div", "problem", clip.problem) : row);
  return node;
}

function build() {
  const value = props.value || {};
  const list = make("ul", "");
  list.append(...(value.clips || []).map(strip));
  const line = value.line ? [make("div", "line", value.line)] : [];
  root.replaceChildren(...(list.children.length ? [list] : []), ...line);
}
watch("value", build);
build();
