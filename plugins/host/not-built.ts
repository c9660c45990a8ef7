/** A plugin whose work is not written yet: it says so, and keeps nobody from deleting a pod. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Plugin } from "./plugin.ts";

export function notBuiltYet(plugin: string, remedy: string): Plugin {
  const refuse = () => {
    throw new CniFailure(CODE.unsupportedField, `${plugin} of this version cannot set up pods yet`, remedy);
  };
  return {
    add: refuse,
    check: refuse,
    status: refuse,
    // Nothing was made, so nothing is to be removed.
    del: () => undefined,
    gc: () => undefined,
  };
}
