// A year of orders as a service would load them at start: many small objects and two indexes. Made by a generator
// with a fixed seed in place of a database, so that every report can be checked.
"use strict";

const COUNTRIES = ["AT", "BR", "CA", "DE", "ES", "FR", "IN", "JP", "KE", "NL", "PL", "US"];
const PRODUCTS = ["anvil", "bolt", "chain", "drill", "easel", "file", "gauge", "hinge"];
const ORDER_COUNT = 200_000;
const CUSTOMER_COUNT = 5_000;

/** Numbers from 0 to 2^32 - 1 in a fixed order (the constants are those of Numerical Recipes). */
function numbers(seed) {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** All orders, and where those of one country and one customer are. */
function loadOrders() {
  const next = numbers(42);
  const orders = [];
  const byCountry = new Map(COUNTRIES.map((country) => [country, []]));
  const byCustomer = new Map();
  for (let id = 0; id < ORDER_COUNT; id++) {
    const order = {
      id,
      reference: `order-${id.toString(36)}`,
      customer: next(CUSTOMER_COUNT),
      country: COUNTRIES[next(COUNTRIES.length)],
      day: next(365),
      line: { product: PRODUCTS[next(PRODUCTS.length)], quantity: 1 + next(9), cents: 100 + next(9_900) },
    };
    orders.push(order);
    byCountry.get(order.country).push(order);
    const own = byCustomer.get(order.customer);
    if (own === undefined) byCustomer.set(order.customer, [order]);
    else own.push(order);
  }
  return { orders, byCountry, byCustomer };
}

module.exports = { loadOrders };
