/**
 * A worker that builds an index of 200,000 small objects when it loads (about 80 MB resident with the
 * interpreter) and looks up 100 of them, spread over the heap by the event's seed, in each request.
 */
const COUNT = 200_000;
const items = new Array(COUNT);
for (let id = 0; id < COUNT; id++) {
  items[id] = { id, price: (id * 7919) % 10_007, label: id % 13, position: [id % 640, id % 480] };
}

export const handler = async (event) => {
  let sum = 0;
  for (let step = 0; step < 100; step++) {
    const item = items[(event.seed * 104_729 + step * 1_999) % COUNT];
    sum += item.price + item.label;
  }
  return { count: items.length, seed: event.seed, sum };
};
