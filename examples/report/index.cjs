// Answers questions about a data set that is loaded once, before the first request. Booting it takes as long as the
// loading; thawing it does not.
"use strict";

const { loadOrders } = require("./orders.cjs");

const { orders, byCountry, byCustomer } = loadOrders();

/** `{"country": "DE"}`, `{"customer": 17}`, or `{}` for the size of the data set. */
exports.handler = async (event) => {
  if (event.country === undefined && event.customer === undefined) {
    return { orders: orders.length, countries: byCountry.size, customers: byCustomer.size };
  }
  const chosen = event.country === undefined ? byCustomer.get(event.customer) : byCountry.get(event.country);
  if (chosen === undefined) throw new RangeError(`no orders of ${JSON.stringify(event)}`);
  const revenueCents = chosen.reduce((sum, { line }) => sum + line.quantity * line.cents, 0);
  const largest = chosen.reduce((best, order) => (value(order) > value(best) ? order : best));
  return { orders: chosen.length, revenueCents, largest: { reference: largest.reference, cents: value(largest) } };
};

const value = ({ line }) => line.quantity * line.cents;
