// The pictures that clips begin from, in the order of the prompts. One is for the prompt of its place, a single one for
// all of them.
const root = element.querySelector(".pictures");

function tile(picture, place) {
  const node = make("li", "picture");
  const frame = make("div", "frame");
  if (picture.look) {
    const image = make("img", "");
    image.src = picture.look;
    image.alt = "";
    frame.append(image);
  } else {
    frame.append(make("span", "name", picture.name));
  }
  const words = make("div", "for", picture.for);
  words.title = picture.for;
  const acts = make("div", "acts");
  if (place > 0) acts.append(act("Earlier", `Image ${place + 1} one place earlier`, "earlier", place));
  acts.append(act("Remove", `Remove image ${place + 1}`, "remove", place));
  node.append(frame, words, acts);
  return node;
}

function act(text, label, event, place) {
  const button = make("button", event, text);
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", () => trigger(event, { place }));
  return button;
}

function build() {
  const value = props.value || {};
  const pictures = value.pictures || [];
  const list = make("ul", "");
  list.append(...pictures.map(tile));
  const line = make("div", value.problem ? "line problem" : "line", value.problem
    || "Each clip begins from its prompt's image: one for each prompt in their order, or a single one for all.");
  root.replaceChildren(make("div", "label", "Images"), ...(pictures.length ? [list] : []), line);
}
watch("value", build);
build();
