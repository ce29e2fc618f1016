import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { HttpConnection } from "./http-connection.js";
import { type HttpWay, startOverHttp } from "./http-start.js";

const undo: (() => void)[] = [];
afterEach(() => {
  for (const step of undo.splice(0)) step();
});

/** A connection to a server that answers every request with this start header. */
async function answering(start: string, status = 200): Promise<HttpConnection> {
  const server = createServer((request, response) => {
    request.resume();
    const text = JSON.stringify(request.headers["x-thaw-prefer"]);
    request.on("end", () => response.writeHead(status, { "x-thaw-start": start, "content-length": text.length }).end(text));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const connection = await HttpConnection.open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  undo.push(
    () => connection.close(),
    () => server.close(),
  );
  return connection;
}

const thaw: HttpWay = { name: "thaw lazy", kind: "thaw", loader: "lazy", prefer: "thaw;loader=lazy;dispose" };

describe("startOverHttp", () => {
  it("demands the way and leaves the wait for a pool out of the time", async () => {
    const connection = await answering("kind=thaw;loader=lazy;us=1;wait=1000000000");
    const { sample, payload } = await startOverHttp(connection, "f", thaw, "{}");
    expect(payload.toString()).toBe('"thaw;loader=lazy;dispose"');
    expect(sample.poolUs).toBe(1_000_000_000);
    expect(sample.us).toBeLessThan(0);
  });

  it("takes a start of another kind, of another loader, or by fallback for a failed run", async () => {
    for (const other of ["kind=boot;us=1", "kind=thaw;loader=eager;us=1", 'kind=thaw;loader=lazy;us=1;fallback="pool empty"']) {
      const connection = await answering(other);
      await expect(startOverHttp(connection, "f", thaw, "{}")).rejects.toThrow(`meant to be "thaw lazy", but was ${other}`);
    }
  });

  it("refuses a header it cannot read", async () => {
    for (const other of ["", "kind=thaw"]) {
      const connection = await answering(other);
      await expect(startOverHttp(connection, "f", thaw, "{}")).rejects.toThrow("X-Thaw-Start cannot be read");
    }
  });

  it("says what the server said when it refused", async () => {
    const connection = await answering("kind=thaw;us=1", 409);
    await expect(startOverHttp(connection, "f", thaw, "{}")).rejects.toThrow('status 409: "thaw;loader=lazy;dispose"');
  });
});
