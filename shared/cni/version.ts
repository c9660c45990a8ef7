/** The spec versions that the plugins speak, oldest first. */
export const VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] as const;
export type CniVersion = (typeof VERSIONS)[number];

export function isSupportedVersion(text: unknown): text is CniVersion {
  return typeof text === "string" && (VERSIONS as readonly string[]).includes(text);
}

/** `version` is `least` or later. */
export function isAtLeast(version: CniVersion, least: CniVersion): boolean {
  return VERSIONS.indexOf(version) >= VERSIONS.indexOf(least);
}
