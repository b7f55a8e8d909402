"""How the page looks: one palette, light and dark, warm greys and one amber accent; and the shell's CSS.

Fonts are the system's: nothing is fetched from another host. Parts use Gradio's theme variables, and these of ours:
--dailies-ok, --dailies-bad, --dailies-run (states), --dailies-quiet (text of less weight, at least 4.5:1).
"""

from __future__ import annotations

import gradio as gr

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")

_LIGHT = {
    "ground": "#f6f5f2",
    "panel": "#ffffff",
    "raised": "#efede8",
    "line": "#dedbd3",
    "edge": "#8b867b",  # of controls: 3:1 against panel
    "text": "#1d1c1a",
    "quiet": "#636059",
    "accent": "#b45309",
    "accent_hover": "#92400e",
    "accent_soft": "#fdf0dd",
    "on_accent": "#ffffff",
    "bad": "#b3372f",
    "bad_soft": "#fbeeec",
}
_DARK = {
    "ground": "#141312",
    "panel": "#1d1c1a",
    "raised": "#262421",
    "line": "#35322d",
    "edge": "#77716a",
    "text": "#efece5",
    "quiet": "#a8a296",
    "accent": "#f0a83c",
    "accent_hover": "#f7bd63",
    "accent_soft": "#3a2c14",
    "on_accent": "#1d1404",
    "bad": "#ef8178",
    "bad_soft": "#331d1b",
}

#: Theme variable -> token.
_VARIABLES = {
    "body_background_fill": "ground",
    "background_fill_primary": "panel",
    "background_fill_secondary": "raised",
    "body_text_color": "text",
    "body_text_color_subdued": "quiet",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "border_color_accent_subdued": "line",
    "color_accent_soft": "accent_soft",
    "link_text_color": "accent",
    "link_text_color_hover": "accent_hover",
    "link_text_color_active": "accent",
    "link_text_color_visited": "accent",
    "block_background_fill": "panel",
    "block_border_color": "line",
    "block_info_text_color": "quiet",
    "block_label_background_fill": "panel",
    "block_label_border_color": "line",
    "block_label_text_color": "quiet",
    "block_title_text_color": "text",
    "panel_background_fill": "panel",
    "panel_border_color": "line",
    "code_background_fill": "raised",
    "checkbox_background_color": "panel",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "edge",
    "checkbox_border_color_hover": "accent",
    "checkbox_border_color_focus": "accent",
    "checkbox_border_color_selected": "accent",
    "checkbox_label_background_fill": "panel",
    "checkbox_label_background_fill_hover": "raised",
    "checkbox_label_background_fill_selected": "accent_soft",
    "checkbox_label_border_color": "line",
    "checkbox_label_border_color_selected": "accent",
    "checkbox_label_text_color": "text",
    "checkbox_label_text_color_selected": "text",
    "error_background_fill": "bad_soft",
    "error_border_color": "bad",
    "error_text_color": "bad",
    "error_icon_color": "bad",
    "input_background_fill": "ground",
    "input_background_fill_focus": "ground",
    "input_background_fill_hover": "ground",
    "input_border_color": "line",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "edge",
    "input_placeholder_color": "quiet",
    "slider_color": "accent",
    "stat_background_fill": "accent",
    "table_border_color": "line",
    "table_even_background_fill": "panel",
    "table_odd_background_fill": "panel",
    "table_row_focus": "accent_soft",
    "table_text_color": "text",
    "accordion_text_color": "text",
    "loader_color": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent_hover",
    "button_primary_border_color": "accent",
    "button_primary_border_color_hover": "accent_hover",
    "button_primary_text_color": "on_accent",
    "button_primary_text_color_hover": "on_accent",
    "button_secondary_background_fill": "panel",
    "button_secondary_background_fill_hover": "raised",
    "button_secondary_border_color": "line",
    "button_secondary_border_color_hover": "edge",
    "button_secondary_text_color": "text",
    "button_secondary_text_color_hover": "text",
    "button_cancel_background_fill": "panel",
    "button_cancel_background_fill_hover": "bad_soft",
    "button_cancel_border_color": "bad",
    "button_cancel_border_color_hover": "bad",
    "button_cancel_text_color": "bad",
    "button_cancel_text_color_hover": "bad",
}

_SHAPE = {
    "body_text_size": "14px",
    "block_radius": "12px",
    "block_border_width": "1px",
    "block_shadow": "none",
    "block_label_shadow": "none",
    "block_title_text_weight": "500",
    "block_title_text_size": "13px",
    "block_info_text_size": "12px",
    "block_padding": "14px",
    "container_radius": "10px",
    "layout_gap": "12px",
    "form_gap_width": "0px",
    "input_border_width": "1px",
    "input_radius": "8px",
    "input_padding": "7px 10px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "checkbox_border_radius": "4px",
    "checkbox_shadow": "none",
    "checkbox_label_border_width": "1px",
    "checkbox_label_shadow": "none",
    "button_border_width": "1px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "8px",
    "button_large_padding": "7px 14px",
    "button_medium_padding": "6px 12px",
    "button_large_text_size": "14px",
    "button_large_text_weight": "500",
    "button_medium_text_weight": "500",
    "button_transition": "background-color .12s ease, border-color .12s ease",
    "section_header_text_weight": "600",
    "shadow_drop": "none",
    "shadow_drop_lg": "0 6px 24px rgb(0 0 0 / .18)",
}


def _amber() -> gr.themes.Color:
    """Amber from pale to dark. Step 500 is color_accent itself, which Gradio takes in light and dark alike."""
    return gr.themes.Color(
        c50="#fdf0dd", c100="#fbe3bf", c200="#f7cf92", c300="#f3bd68", c400="#f0a83c", c500="#b45309",
        c600="#b45309", c700="#92400e", c800="#78350f", c900="#5c2a0c", c950="#3a2c14", name="amber",
    )  # fmt: skip


def _warm() -> gr.themes.Color:
    """Warm grey from paper to ink."""
    return gr.themes.Color(
        c50="#f6f5f2", c100="#efede8", c200="#dedbd3", c300="#c7c3b9", c400="#a8a296", c500="#6d6a63",
        c600="#56534d", c700="#35322d", c800="#262421", c900="#1d1c1a", c950="#141312", name="warm",
    )  # fmt: skip


class Dailies(gr.themes.Base):
    """A cutting room: calm, video in the middle, chrome at the edge."""

    def __init__(self) -> None:
        super().__init__(
            primary_hue=_amber(),
            secondary_hue=_amber(),
            neutral_hue=_warm(),
            radius_size=gr.themes.sizes.radius_md,
            font=list(_SANS),
            font_mono=list(_MONO),
        )
        self.name = "dailies"
        values: dict[str, str] = dict(_SHAPE)
        for variable, token in _VARIABLES.items():
            values[variable] = _LIGHT[token]
            values[f"{variable}_dark"] = _DARK[token]
        self.set(**values)


# Gradio puts its own class before each selector and cuts at every comma: none may stand inside :not() or :is(), and
# inside @media no selector may begin with .gradio-container.
CSS = """
:root { --dailies-ok: #2f7d4f; --dailies-bad: #b3372f; --dailies-run: #2563a8; --dailies-quiet: #636059;
  --dailies-edge: #8b867b; }
.dark { --dailies-ok: #6cc48f; --dailies-bad: #ef8178; --dailies-run: #78b0ec; --dailies-quiet: #a8a296;
  --dailies-edge: #77716a; --color-accent: #f0a83c; }
.dark input[type=checkbox]:checked { background-image: url("data:image/svg+xml,%3csvg viewBox='0 0 16 16' \
fill='%231d1404' xmlns='http://www.w3.org/2000/svg'%3e%3cpath d='M12.207 4.793a1 1 0 010 1.414l-5 5a1 1 0 01-1.414 \
0l-2-2a1 1 0 011.414-1.414L6.5 9.086l4.293-4.293a1 1 0 011.414 0z'/%3e%3c/svg%3e") !important; }
.gradio-container > .main, .gradio-container .main.fillable { max-width: 1400px; margin: 0 auto;
  padding: 8px clamp(12px, 1.6vw, 20px) 48px; }
.gradio-container { overflow: clip !important; }
.gradio-container :focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.gradio-container footer:empty { display: none; }
.gradio-container .html-container { padding: 0; }
.gradio-container .html-container > .prose { font-size: inherit; }
.gradio-container .block:has(> .html-container > .prose:empty) { display: none; }
.gradio-container h2, .gradio-container h3 { font-size: 15px; font-weight: 600; margin: 0; }

/* The header: wordmark, tabs, what runs now, in one line. */
#shell { position: relative; gap: 0; }
#wordmark { position: absolute; left: 0; top: 9px; z-index: 2; width: auto; font-size: 17px; font-weight: 650;
  letter-spacing: .2px; line-height: 32px; color: var(--body-text-color); }
#wordmark .prose { font-weight: 650; }
#wordmark b { color: var(--color-accent); font-weight: inherit; }
#now { position: absolute; right: 0; top: 12px; z-index: 2; width: auto; }
#now .chip { display: inline-flex; gap: 7px; align-items: center; padding: 3px 10px; border-radius: 99px;
  background: var(--background-fill-secondary); color: var(--dailies-quiet); font-size: 12px; line-height: 20px; }
#now .dot { width: 8px; height: 8px; border-radius: 50%; background: var(--dailies-run); }
#tabs > .tab-wrapper { padding: 0 220px 0 100px; height: 51px; margin-bottom: 16px; align-items: center;
  border-bottom: 1px solid var(--border-color-primary); }
#tabs > .tab-wrapper .tab-container { border: 0; gap: 4px; height: 36px; }
#tabs > .tab-wrapper .tab-container::after { display: none; }
#tabs > .tab-wrapper .tab-container button { height: 34px; padding: 0 14px; border: 1px solid transparent;
  border-radius: 8px; color: var(--dailies-quiet); font-size: 14px; font-weight: 400; background: none; }
#tabs > .tab-wrapper .tab-container button:hover { color: var(--body-text-color); }
#tabs > .tab-wrapper .tab-container button.selected { color: var(--body-text-color); font-weight: 500;
  background: var(--background-fill-primary); border-color: var(--border-color-primary); }
#tabs > .tab-wrapper .tab-container button.selected::after { display: none; }
#tabs > .tabitem { border: 0; padding: 0; background: none; }

/* Cards. A column or group with class card is a panel; what stands in it needs no frame of its own. */
.card { background: var(--background-fill-primary); border: 1px solid var(--border-color-primary);
  border-radius: 12px; padding: 14px; gap: 12px; }
.card .block, .card .form { border-width: 0; border-radius: 0; background: none; box-shadow: none; }
.card .block:not(.keep) { padding: 0; }
.card > .styler { background: none; border: 0; gap: 12px; }
.side { flex: 0 0 260px; min-width: 260px; }
.aside { flex: 0 0 384px; min-width: 0; position: sticky; top: 12px; align-self: flex-start;
  max-height: calc(100vh - 24px); overflow: auto; }
.pair, .pair > .form { display: grid; grid-template-columns: 1fr 1fr; gap: 10px 12px; background: none; border: 0; }
.pair > .form { grid-column: 1 / -1; }
.pair .block { min-width: 0 !important; }
#new-dataset-name input { border: 1px solid var(--border-color-primary); border-radius: 8px; }
#upload { border: 1px dashed var(--dailies-edge); border-radius: 10px; }
#upload .wrap { font-size: 13px; line-height: 1.35; min-height: 0; padding: 8px; }
#upload .icon-wrap { width: 18px; height: 18px; margin-bottom: 2px; }
.actions > .form, .actions > .origin { flex: 0 0 260px !important; min-width: 0 !important; border: 0; }
.actions > .form { background: none; }
.pictures-room { gap: 8px; }
.pictures-room > .actions { align-items: flex-end; }
.pictures-room > .actions > .form { flex: 1 1 260px !important; max-width: 420px; }
#new-comparison .form:has(> .block + .block) { gap: 12px; }
.title { font-size: 15px; font-weight: 600; line-height: 1.4; }
.arrived { display: none; }
.quiet, .quiet p { color: var(--dailies-quiet); }
.answer b { display: block; font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.answer span { color: var(--dailies-quiet); overflow-wrap: anywhere; }
.answer.ok span { color: var(--dailies-ok); }
.answer.bad span { color: var(--dailies-bad); }
.notes { margin: 0; padding: 0; list-style: none; font-size: 13px; overflow-wrap: anywhere; }
.notes li { padding: 4px 0 4px 12px; border-left: 3px solid var(--border-color-primary); margin: 0 0 4px; }
.notes li.bad, .notes li.error { border-left-color: var(--dailies-bad); color: var(--dailies-bad); }
.notes li.ok { border-left-color: var(--dailies-ok); }
.notes li.warning { border-left-color: var(--color-accent); }
.actions { gap: 8px; align-items: center; }
.actions > button, .actions > .block { flex: 0 0 auto; width: auto; min-width: 0; }
.actions > .grow { flex: 1 1 0; min-width: 120px; }
.gradio-container button:disabled { opacity: 1; cursor: not-allowed;
  border-color: var(--border-color-primary) !important; background: var(--background-fill-secondary) !important;
  color: var(--dailies-quiet) !important; }  /* its words say why */

/* A list of choices, one below the other: datasets, families. First line bold, the rest quiet. */
.list .wrap, .cards .wrap { gap: 6px; }
.list .wrap { flex-direction: column; }
.list label, .cards label { align-items: flex-start; width: 100%; border-radius: 10px; white-space: pre-line;
  overflow-wrap: anywhere; padding: 9px 10px; line-height: 1.45; }
.list label { border-color: transparent; background: none; }
.list label.selected { background: var(--background-fill-secondary); border-color: var(--border-color-primary); }
.list label span, .cards label span { color: var(--dailies-quiet); margin-left: 0; }
.list label span { display: block; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.list label span::first-line, .cards label span::first-line { color: var(--body-text-color); font-weight: 600; }
.list input[type=radio], .cards input[type=radio] { position: absolute; opacity: 0; }
.list label:focus-within, .cards label:focus-within { outline: 2px solid var(--color-accent); outline-offset: -2px; }
.cards .wrap { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px; }
.cards label.selected { border-color: var(--color-accent); background: var(--color-accent-soft); }

/* Forms: as many columns as fit; a list of lines takes the whole width. */
.fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 16px 20px;
  align-items: start; }
.fields > * { min-width: 0 !important; width: 100%; }
.fields > .form { display: contents; }
.fields .wide { grid-column: 1 / -1; }
.field > .container { display: flex; flex-direction: column; }
.field > .container > .info-text { order: 9; margin: 5px 0 0; }
.wrap-inner input { text-overflow: ellipsis; padding-right: 24px; }
.gradio-container .wrap-inner input:focus-visible { outline: none; }
.gradio-container .wrap:has(> .wrap-inner input:focus-visible) { outline: 2px solid var(--color-accent); }
.field .info-text { line-height: 1.4; overflow-wrap: anywhere; }
.field.problem .info-text { color: var(--dailies-bad); }
.field.problem input, .field.problem textarea,
.field.problem .container > .wrap { border-color: var(--dailies-bad) !important; }
.section { padding-top: 12px; gap: 12px; }
.section h4 { font-size: 14px; margin: 0; }
.section .prose p { color: var(--dailies-quiet); margin: 0 0 4px; }
.mono textarea, .mono input, .cm-editor .cm-scroller { font-family: var(--font-mono); font-size: 12px; }
.gradio-container .cm-line span { color: inherit !important; }

.gradio-container .label-wrap { text-align: left; gap: 8px; align-items: center; }
.gradio-container .label-wrap > span:first-child { flex: 1 1 0; min-width: 0; }
.gradio-container .label-wrap > .icon { flex: none; }

@media (max-width: 700px) {
  #wordmark { position: static; }
  #now { top: 4px; }
  #tabs > .tab-wrapper { padding: 0; height: 48px; }
  #tabs > .tab-wrapper .tab-container { height: 42px; }
  #tabs > .tab-wrapper .tab-container { gap: 0; }
  #tabs > .tab-wrapper .tab-container button { height: 40px; padding: 0 11px; }
  .actions > .form, .actions > .origin { flex-basis: 216px !important; }
  .actions.head > .grow { flex-basis: 100%; }
  .actions.head > button { flex: 1 1 0; }
  .row.stack { flex-direction: column; flex-wrap: nowrap; align-items: stretch; }
  .side, .aside { flex: 1 1 auto; width: 100%; min-width: 0; position: static; max-height: none; }
  button, select, .list label, .cards label,
  input:not([type=checkbox]):not([type=radio]):not([type=range]):not([type=file]) {
    min-height: 40px !important; }
  .icon-button { min-width: 40px; }
  .wrap-inner { padding-top: 0 !important; padding-bottom: 0 !important; }
  .wrap:has(> input[type=radio]) label, .field label:has(> input[type=radio]),
  .field label:has(> input[type=checkbox]) { min-height: 40px; align-items: center; }
}
"""
