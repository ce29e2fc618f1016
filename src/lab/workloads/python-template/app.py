"""Renders an invoice of 120 lines with string.Template and html.escape."""

from html import escape
from string import Template

PAGE = Template("<h1>$title</h1><ul>$lines</ul><b>$total</b>")
LINE = Template("<li>$id: $name $dear$price</li>")
LINES = 120


def handler(event, context):
    seed = event["seed"]
    total = 0
    lines = []
    for index in range(LINES):
        price = (seed + index) * 7919 % 1009
        total += price
        name = escape(f"part <{(seed + index) % 97}>")
        lines.append(LINE.substitute(id=index, name=name, dear="!" if price > 500 else "", price=price))
    return {"html": PAGE.substitute(title=escape(f"Order {seed}"), lines="".join(lines), total=total)}
