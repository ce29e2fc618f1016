import { describe, expect, it } from "vitest";
import { isLoopback, refuseForeignPages } from "./guard.js";

describe("loopback names", () => {
  it.each(["localhost", "LOCALHOST", "a.fn.localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])("%s is one", (name) => {
    expect(isLoopback(name)).toBe(true);
  });
  it.each(["0.0.0.0", "::", "10.0.0.1", "127.evil.example", "localhost.evil.example", "1127.0.0.1", ""])("%j is none", (name) => {
    expect(isLoopback(name)).toBe(false);
  });
});

describe("requests that a web page may have caused", () => {
  it("a name pointed at loopback is refused", () => {
    expect(() => refuseForeignPages({ host: "evil.example:9470" }, true)).toThrow(
      'does not answer to the host name "evil.example:9470"',
    );
  });
  it("a page of another origin is refused, wherever the server listens", () => {
    const headers = { host: "127.0.0.1:9470", origin: "https://evil.example" };
    expect(() => refuseForeignPages(headers, true)).toThrow("pages of other origins");
    expect(() => refuseForeignPages({ ...headers, host: "box:9470" }, false)).toThrow("pages of other origins");
  });
  it("a sandboxed page, whose origin is null, is refused", () => {
    expect(() => refuseForeignPages({ host: "localhost", origin: "null" }, true)).toThrow("pages of other origins");
  });
  it("programs and pages of this server pass", () => {
    for (const host of ["127.0.0.1:9470", "localhost", "[::1]:9470"]) refuseForeignPages({ host }, true);
    refuseForeignPages({}, true);
    refuseForeignPages({ host: "box:9470" }, false);
    refuseForeignPages({ host: "localhost:9470", origin: "http://localhost:9470" }, true);
  });
});
