/** The node's ends of a pod's links, as ADD returned them. */
import type { Result } from "../cni/result.ts";
import { linkText } from "./names.ts";

/** What the kernel takes, as far as we compare it byte by byte. */
const IFNAME = /^[!-~]{1,15}$/;

type Interfaces = Pick<Result, "interfaces"> | undefined;

function linksOf(result: Interfaces) {
  const interfaces = result?.interfaces ?? [];
  const onNode = interfaces.filter((i) => (i.sandbox ?? "") === "");
  // Others make one for each interface of the pod, or none; the bridge plugin names its bridge and the veth.
  return { onNode, isBridged: onNode.length > interfaces.length - onNode.length };
}

export function isBridged(result: Interfaces): boolean {
  return linksOf(result).isBridged;
}

/** In the words of addresses. Those of a bridge are not one pod's. */
export function nodeLinks(result: Interfaces): string[] {
  const { onNode, isBridged } = linksOf(result);
  if (isBridged) return [];
  return onNode.flatMap(({ name }) => (IFNAME.test(name) ? [linkText(name)] : []));
}
