/** A Fastify application as a Lambda function: schemas for what comes and goes, a hook, a plugin, three routes. One request an event. */
import fastify from "fastify";

const app = fastify({ logger: false });

const product = {
  type: "object",
  required: ["sku", "cents", "quantity"],
  properties: {
    sku: { type: "string", pattern: "^[A-Z]{2}-\\d+$" },
    cents: { type: "integer" },
    quantity: { type: "integer", minimum: 1 },
  },
};
const order = {
  params: { type: "object", properties: { id: { type: "integer" } } },
  querystring: { type: "object", properties: { currency: { type: "string", enum: ["EUR", "USD"] } } },
  body: {
    type: "object",
    required: ["customer", "items"],
    properties: { customer: { type: "string" }, items: { type: "array", items: product } },
  },
  response: {
    201: {
      type: "object",
      properties: {
        id: { type: "integer" },
        customer: { type: "string" },
        currency: { type: "string" },
        cents: { type: "integer" },
        lines: { type: "array", items: { type: "object", properties: { sku: { type: "string" }, cents: { type: "integer" } } } },
      },
    },
  },
};

app.addHook("onRequest", async (request) => {
  request.tenant = request.headers["x-tenant"] ?? "nobody";
});
app.get("/health", async () => ({ ok: true }));
app.register(
  (shop, _options, done) => {
    shop.get("/products/:sku", async ({ params }) => ({ sku: params.sku }));
    shop.post("/orders/:id", { schema: order }, async (request, reply) => {
      const lines = request.body.items.map(({ sku, cents, quantity }) => ({ sku, cents: cents * quantity }));
      const cents = lines.reduce((sum, line) => sum + line.cents, 0);
      reply.code(201).header("x-tenant", request.tenant);
      return { id: request.params.id, customer: request.body.customer, currency: request.query.currency, cents, lines };
    });
    done();
  },
  { prefix: "/shop" },
);
await app.ready();

export const handler = async ({ method, url, headers, body }) => {
  const { statusCode, headers: answered, payload } = await app.inject({ method, url, headers, payload: body });
  return { statusCode, tenant: answered["x-tenant"], body: payload };
};
