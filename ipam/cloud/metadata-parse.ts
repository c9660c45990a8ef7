/** The forms in which the metadata service writes lists (alicloud-api section 9). */

/**
 * A JSON array of strings (`private-ipv4s`), or a list in brackets without quotes (`ipv6s`), or nothing.
 *
 * @returns undefined when it is neither.
 */
export function parseAddressList(text: string): readonly string[] | undefined {
  const trimmed = text.trim();
  if (trimmed === "") return [];
  const inside = /^\[(.*)\]$/s.exec(trimmed)?.[1];
  if (inside === undefined) return undefined;
  const items = inside
    .split(",")
    .map((item) => item.trim().replace(/^"(.*)"$/, "$1"))
    .filter((item) => item !== "");
  return items.every((item) => /^[0-9a-fA-F.:/]+$/.test(item)) ? items : undefined;
}

/** One MAC a line, each with a slash behind it; in lower case. */
export function parseMacList(text: string): readonly string[] {
  return text
    .split("\n")
    .map((line) => line.trim().replace(/\/$/, "").toLowerCase())
    .filter((line) => /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(line));
}

/** One value a line: `ipv4-prefixes`, or the JSON array of some versions of the service. */
export function parseLines(text: string): readonly string[] {
  return parseAddressList(text) ?? text.split("\n").flatMap((line) => (line.trim() === "" ? [] : [line.trim()]));
}
