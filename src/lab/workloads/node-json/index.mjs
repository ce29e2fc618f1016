/** Reads a JSON document of orders, sums them up by customer and country, and writes another one. */

function totalOf({ items, discount }) {
  const cents = items.reduce((sum, { cents, quantity }) => sum + cents * quantity, 0);
  return cents - Math.floor((cents * discount) / 100);
}

export const handler = async ({ body }) => {
  const { orders } = JSON.parse(body);
  const customers = new Map();
  const countries = {};
  const lines = [];
  for (const order of orders) {
    const { customer } = order;
    const cents = totalOf(order);
    const known = customers.get(customer.id) ?? { ...customer, orders: 0, cents: 0 };
    known.orders += 1;
    known.cents += cents;
    customers.set(customer.id, known);
    countries[customer.country] = (countries[customer.country] ?? 0) + cents;
    lines.push({ ...order, cents, skus: order.items.map(({ sku }) => sku) });
  }
  const best = [...customers.values()].sort((a, b) => b.cents - a.cents || a.id - b.id);
  return { statusCode: 200, body: JSON.stringify({ lines, customers: best, countries }) };
};
