/** The node's ends of a pod's links, as ADD returned them. */
import type { Result } from "../cni/result.ts";
import { linkText } from "./names.ts";

/** What the kernel takes, as far as we compare it byte by byte. */
const IFNAME = /^[!-~]{1,15}$/;

/**
 * In the words of addresses. An interface plugin makes one for each interface of the pod, or none: where there are more,
 * they are a bridge's, which is not one pod's.
 */
export function nodeLinks(result: Pick<Result, "interfaces"> | undefined): string[] {
  const interfaces = result?.interfaces ?? [];
  const onNode = interfaces.filter((i) => (i.sandbox ?? "") === "");
  if (onNode.length > interfaces.length - onNode.length) return [];
  return onNode.flatMap(({ name }) => (IFNAME.test(name) ? [linkText(name)] : []));
}
