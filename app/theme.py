"""The look of the board: colours, type and spacing of gradio's components, our style sheet, the head of the page."""

from pathlib import Path
from urllib.parse import quote

from gradio.themes import Base
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import Size, spacing_md

CSS = (Path(__file__).parent.parent / "assets" / "board.css").read_text(encoding="utf-8")

TEAL = Color(
    "#f0fdfa", "#ccfbf1", "#99f6e4", "#5eead4", "#2dd4bf", "#14b8a6",
    "#0d9488", "#0f766e", "#115e59", "#134e4a", "#042f2e",
)  # fmt: skip
INK = Color(
    "#fafaf8", "#f1f2f0", "#e3e5e3", "#cdd1d1", "#9aa4b0", "#78818c",
    "#56606c", "#343b45", "#232a33", "#161b22", "#0e1116",
)  # fmt: skip
TEXT = Size("13px", "13px", "13px", "15px", "18px", "24px", "24px")
RADIUS = Size("2px", "4px", "8px", "8px", "8px", "8px", "8px")
FONT = "system-ui, 'Noto Sans', 'Noto Sans SC', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', 'Noto Sans Mono CJK SC', monospace"

# Name in gradio -> (light, dark).
COLOURS = {
    "body_background_fill": ("#fafaf8", "#0e1116"),
    "body_text_color": ("#0b1220", "#e6e8eb"),
    "body_text_color_subdued": ("#56606c", "#9aa4b0"),
    "background_fill_primary": ("#ffffff", "#161b22"),
    "background_fill_secondary": ("#f1f2f0", "#1c222a"),
    "border_color_primary": ("#e3e5e3", "#2b333d"),
    "border_color_accent": ("*primary_700", "*primary_400"),
    "color_accent_soft": ("*primary_50", "#12302f"),
    "block_background_fill": ("#ffffff", "#161b22"),
    "block_border_color": ("#e3e5e3", "#2b333d"),
    "block_label_text_color": ("#56606c", "#9aa4b0"),
    "block_title_text_color": ("#0b1220", "#e6e8eb"),
    "block_info_text_color": ("#56606c", "#9aa4b0"),
    "input_background_fill": ("#ffffff", "#0e1116"),
    "input_border_color": ("#858d98", "#68727f"),  # 3:1, the outline of a control must be seen
    "input_border_color_focus": ("*primary_700", "*primary_400"),
    "input_placeholder_color": ("#68717d", "#8b95a1"),
    "checkbox_background_color": ("#ffffff", "#0e1116"),
    "checkbox_background_color_selected": ("*primary_700", "*primary_600"),
    "checkbox_border_color": ("#858d98", "#68727f"),
    "checkbox_border_color_selected": ("*primary_700", "*primary_600"),
    "slider_color": ("*primary_700", "*primary_400"),
    "loader_color": ("*primary_700", "*primary_400"),
    "link_text_color": ("*primary_700", "*primary_400"),
    "link_text_color_hover": ("*primary_800", "*primary_300"),
    "link_text_color_visited": ("*primary_700", "*primary_400"),
    "link_text_color_active": ("*primary_800", "*primary_300"),
    "button_primary_background_fill": ("*primary_700", "*primary_400"),
    "button_primary_background_fill_hover": ("*primary_800", "*primary_300"),
    "button_primary_border_color": ("*primary_700", "*primary_400"),
    "button_primary_text_color": ("#ffffff", "#06201c"),
    "button_secondary_background_fill": ("#ffffff", "#161b22"),
    "button_secondary_background_fill_hover": ("#f1f2f0", "#232a33"),
    "button_secondary_border_color": ("#cdd1d1", "#3a434e"),
    "button_secondary_text_color": ("#0b1220", "#e6e8eb"),
    "button_cancel_background_fill": ("#ffffff", "#161b22"),
    "button_cancel_background_fill_hover": ("#fdf0ee", "#2d1d1d"),
    "button_cancel_border_color": ("#b42318", "#ff9a8f"),
    "button_cancel_text_color": ("#b42318", "#ff9a8f"),
    "error_background_fill": ("#fdf0ee", "#2d1d1d"),
    "error_border_color": ("#b42318", "#ff9a8f"),
    "error_text_color": ("#b42318", "#ff9a8f"),
    "error_icon_color": ("#b42318", "#ff9a8f"),
    "table_border_color": ("#e3e5e3", "#2b333d"),
    "table_even_background_fill": ("#ffffff", "#161b22"),
    "table_odd_background_fill": ("#fafaf8", "#12161c"),
    "code_background_fill": ("#f1f2f0", "#1c222a"),
}
SHAPES = {
    "block_border_width": "0px",  # hairlines between cards, not boxes in boxes
    "block_shadow": "none",
    "block_padding": "0",
    "block_label_background_fill": "transparent",
    "block_title_text_weight": "500",
    "block_info_text_size": "*text_sm",
    "block_title_text_size": "*text_md",
    "layout_gap": "16px",
    "form_gap_width": "16px",
    "input_border_width": "1px",
    "input_padding": "8px 12px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 1px *color_accent",
    "checkbox_border_radius": "4px",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_dark": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_hover_dark": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_background_fill_selected_dark": "transparent",
    "checkbox_label_border_width": "0px",
    "checkbox_label_border_width_dark": "0px",
    "checkbox_label_padding": "4px 12px 4px 0",
    "chatbot_text_size": "*text_md",
    "checkbox_shadow": "none",
    "button_border_width": "1px",
    "button_primary_shadow": "none",
    "button_large_text_size": "*text_md",
    "button_large_text_weight": "600",
    "button_medium_text_weight": "500",
    "button_small_text_weight": "500",
    "shadow_drop": "none",
}

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="8" fill="#0f766e"/>
<path d="M6 9c4 0 5 12 11 13 3 .5 6 .5 9 .5" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round"/>
<circle cx="26" cy="22.5" r="3" fill="#5eead4"/></svg>"""

# Gradio puts `dark` on the body by the system's wish, and follows that from then on. Our script runs after it and
# holds to the reader's choice: a click on any element of the class tb-theme.
SCRIPT = """(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => localStorage.getItem("tuneboard.theme") ?? (system.matches ? "dark" : "light");
  const show = () => document.body.classList.toggle("dark", wanted() === "dark");
  show();
  system.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".tb-theme")) return;
    localStorage.setItem("tuneboard.theme", wanted() === "dark" ? "light" : "dark");
    show();
  });
})();"""

HEAD = f"""<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">
<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(ICON)}"><script>{SCRIPT}</script>"""


class Workbench(Base):
    """Gradio's base theme in our colours and sizes, with our style sheet."""

    def __init__(self):
        super().__init__(
            primary_hue=TEAL,
            secondary_hue=TEAL,
            neutral_hue=INK,
            text_size=TEXT,
            spacing_size=spacing_md,
            radius_size=RADIUS,
        )
        self.name = "tuneboard"
        light = {name: colour for name, (colour, _) in COLOURS.items()}
        dark = {f"{name}_dark": colour for name, (_, colour) in COLOURS.items()}
        self.set(**light, **dark, **SHAPES)
        self.color_accent, self.color_accent_dark = TEAL.c700, TEAL.c400  # `set` knows no dark one
        # Given as fonts, their names would be quoted, and 'system-ui' in quotes is not the system's font.
        self.font, self.font_mono, self._font_css = FONT, MONO, []
        # Not by css= of the mount: gradio prefixes those selectors, also :root within @media, drops @supports and
        # @container, and sends the text with each page, while this goes into theme.css.
        self.custom_css = CSS


def theme() -> Base:
    """The theme to mount the board with; it brings `CSS` along, so css= stays empty."""
    return Workbench()
