"""Reads a JSON document of orders, sums them up by customer and country, and writes another one."""

import json


def total_of(order):
    cents = sum(item["cents"] * item["quantity"] for item in order["items"])
    return cents - cents * order["discount"] // 100


def handler(event, context):
    customers = {}
    countries = {}
    lines = []
    for order in json.loads(event["body"])["orders"]:
        customer = order["customer"]
        cents = total_of(order)
        known = customers.setdefault(customer["id"], {**customer, "orders": 0, "cents": 0})
        known["orders"] += 1
        known["cents"] += cents
        country = customer["country"]
        countries[country] = countries.get(country, 0) + cents
        lines.append({**order, "cents": cents, "skus": [item["sku"] for item in order["items"]]})
    best = sorted(customers.values(), key=lambda customer: (-customer["cents"], customer["id"]))
    document = {"lines": lines, "customers": best, "countries": countries}
    return {"statusCode": 200, "body": json.dumps(document, separators=(",", ":"), ensure_ascii=False)}
