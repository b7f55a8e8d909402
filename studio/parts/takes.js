// The checkpoints of a run, newest first, each with its star.
const root = element.querySelector(".takes");
const stars = new Map(); // step -> button, so that focus stays where it is
let shown = "";

function build() {
  const value = props.value || {};
  if (shown !== value.run) stars.clear();
  shown = value.run;
  const active = document.activeElement;
  const rows = (value.takes || []).map((take) => {
    const row = make("li", "take");
    const text = make("div", "text");
    text.append(make("b", "", `step ${take.step}`));
    for (const mark of take.marks || []) text.append(make("em", "", mark));
    if (take.loss) text.append(make("span", "", `validation loss ${take.loss}`));
    let star = stars.get(take.step);
    if (!star) {
      star = make("button", "star");
      star.type = "button";
      star.addEventListener("click", () => {
        const on = star.getAttribute("aria-pressed") !== "true";
        trigger("star", { run: shown, step: take.step, on });
      });
      stars.set(take.step, star);
    }
    star.textContent = take.starred ? "\u2605 Starred" : "\u2606 Star";
    star.title = take.starred ? "Starred: never deleted. Press to take the star away" : "Star: never delete this one";
    star.setAttribute("aria-pressed", String(Boolean(take.starred)));
    star.setAttribute("aria-label", `Star step ${take.step}`);
    row.append(text, star);
    return row;
  });
  const list = make("ul", "");
  list.append(...rows);
  root.replaceChildren(rows.length ? list : make("div", "empty", value.empty || ""));
  if (active && root.contains(active)) active.focus({ preventScroll: true });
}
watch("value", build);
build();
