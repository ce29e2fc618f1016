/** Reads an access log with regular expressions: fields, query parameters, numbers in paths, crawlers. */
const LINE =
  /^(?<address>\d{1,3}(?:\.\d{1,3}){3}) - (?<user>\S+) \[(?<at>[^\]]+)\] "(?<method>[A-Z]+) (?<target>\S+) HTTP\/[\d.]+" (?<status>\d{3}) (?<bytes>\d+|-) "(?<referrer>[^"]*)" "(?<agent>[^"]*)"$/;
const PARAMETER = /[?&]([^=&]+)=([^&]*)/g;
const NUMBER = /\/\d+(?=\/|$)/g;
const CRAWLER = /\b(?:bot|crawler|spider)\b/i;
const MAIL = /\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b/gi;

export const handler = async ({ log }) => {
  const [statuses, routes, parameters] = [{}, {}, {}];
  let [lines, bytes, crawlers, mails, wrong] = [0, 0, 0, 0, 0];
  for (const line of log.split("\n")) {
    const fields = LINE.exec(line)?.groups;
    if (fields === undefined) {
      wrong += 1;
      continue;
    }
    lines += 1;
    if (fields.bytes !== "-") bytes += Number(fields.bytes);
    if (CRAWLER.test(fields.agent)) crawlers += 1;
    statuses[fields.status] = (statuses[fields.status] ?? 0) + 1;
    const [path] = fields.target.split("?");
    const route = `${fields.method} ${path.replace(NUMBER, "/:id")}`;
    routes[route] = (routes[route] ?? 0) + 1;
    for (const [, name] of fields.target.matchAll(PARAMETER)) parameters[name] = (parameters[name] ?? 0) + 1;
    mails += fields.target.match(MAIL)?.length ?? 0;
  }
  return { lines, wrong, bytes, crawlers, mails, statuses, routes, parameters };
};
