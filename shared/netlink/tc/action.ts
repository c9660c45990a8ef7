/** The action that filters carry: mirred. Nested lists, numbered from 1. */
import * as C from "../uapi/pkt-cls.ts";
import { eachAttribute, readString, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

export interface Action {
  readonly kind: "mirred";
  /** TCA_EGRESS_REDIR, … */
  readonly direction: number;
  readonly linkIndex: number;
}

const MIRRED = { action: 8, eaction: 20, ifindex: 24, bytes: 28 };

function writeMirred(w: Writer, a: Action): void {
  const parms = w.beginNest(C.TCA_MIRRED_PARMS, 0);
  const redirects = a.direction === C.TCA_EGRESS_REDIR || a.direction === C.TCA_INGRESS_REDIR;
  // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
  for (const v of [0, 0, redirects ? C.TC_ACT_STOLEN : C.TC_ACT_PIPE, 0, 0, a.direction, a.linkIndex]) w.u32(v);
  w.endNest(parms);
}

/** @param type The filter's attribute for its actions, e.g. TCA_U32_ACT. */
export function writeActions(w: Writer, type: number, actions: readonly Action[]): void {
  if (actions.length === 0) return;
  const list = w.beginNest(type);
  for (const [i, action] of actions.entries()) {
    const one = w.beginNest(i + 1);
    w.attrString(C.TCA_ACT_KIND, action.kind);
    const options = w.beginNest(C.TCA_ACT_OPTIONS);
    writeMirred(w, action);
    w.endNest(options);
    w.endNest(one);
  }
  w.endNest(list);
}

function readMirred(options: Uint8Array): Action {
  let action: Action = { kind: "mirred", direction: 0, linkIndex: 0 };
  eachAttribute(options, 0, (type, v) => {
    if (type === C.TCA_MIRRED_PARMS && v.length >= MIRRED.bytes)
      action = { kind: "mirred", direction: readU32(v, MIRRED.eaction), linkIndex: readU32(v, MIRRED.ifindex) };
  });
  return action;
}

/** Actions of kinds that this codec does not know are left out. @throws {MalformedNetlink} */
export function readActions(list: Uint8Array): Action[] {
  const actions: Action[] = [];
  eachAttribute(list, 0, (_index, one) => {
    let kind = "";
    let options: Uint8Array = new Uint8Array(0);
    eachAttribute(one, 0, (type, v) => {
      if (type === C.TCA_ACT_KIND) kind = readString(v);
      else if (type === C.TCA_ACT_OPTIONS) options = v;
    });
    if (kind === "mirred") actions.push(readMirred(options));
  });
  return actions;
}

export function describeAction(a: Action): string {
  const redirects = a.direction === C.TCA_EGRESS_REDIR || a.direction === C.TCA_INGRESS_REDIR;
  const side = a.direction <= C.TCA_EGRESS_MIRROR ? "egress" : "ingress";
  return `action mirred ${side} ${redirects ? "redirect" : "mirror"} dev if${a.linkIndex}`;
}
