"""Bar charts as SVG, in colors that are readable on a light and on a dark page."""

from html import escape

TEXT = "#787878"
COLORS = {"recast": "#d9642b", "floor": "#787878", "other": "#4a86c5"}
LEFT, BAR, ROW, WIDTH = 330, 330, 24, 800


def bars(title: str, groups: list[tuple[str, list[tuple[str, float, str, str]]]]) -> str:
    """Horizontal bars; a group is its heading and rows of label, value, what to print and kind."""
    longest = max(value for _, rows in groups for _, value, _, _ in rows) or 1
    parts = [f'<text x="10" y="24" font-size="15" font-weight="bold">{escape(title)}</text>']
    top = 36
    for heading, rows in groups:
        if heading:
            top += 24
            parts.append(f'<text x="10" y="{top - 6}" font-weight="bold">{escape(heading)}</text>')
        for label, value, shown, kind in rows:
            width = max(1, BAR * value / longest)
            parts += [
                f'<text x="{LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(label)}</text>',
                f'<rect x="{LEFT}" y="{top + 4}" width="{width:.1f}" height="{ROW - 8}" rx="2" '
                f'fill="{COLORS[kind]}"/>',
                f'<text x="{LEFT + width + 6:.1f}" y="{top + 16}">{escape(shown)}</text>',
            ]
            top += ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 10}" '
        f'width="{WIDTH}" role="img" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{TEXT}">\n<title>{escape(title)}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )
