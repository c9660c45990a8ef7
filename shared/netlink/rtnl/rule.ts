/** Policy routing rules: struct fib_rule_hdr (12 bytes) and FRA_ attributes, include/uapi/linux/fib_rules.h. */
import { type Cidr, formatCidr } from "../../net/cidr.ts";
import type { Ip } from "../../net/ip.ts";
import type { Request } from "../request.ts";
import * as F from "../uapi/fib-rules.ts";
import { NLM_F_CREATE, NLM_F_EXCL } from "../uapi/netlink.ts";
import { RTM_DELRULE, RTM_GETRULE, RTM_NEWRULE } from "../uapi/rtnetlink.ts";
import { eachAttribute, MalformedNetlink, readString, readU32 } from "../wire/reader.ts";
import { type Family, readIp } from "./family.ts";

const FIB_RULE_HDR_BYTES = 12;

export interface Rule {
  readonly family: Family;
  /** 0 to 32767; the lowest is looked at first. */
  readonly priority: number;
  /** Absent matches every source. */
  readonly from?: Cidr;
  readonly to?: Cidr;
  readonly iifName?: string;
  readonly oifName?: string;
  readonly table: number;
  readonly mark?: number;
  readonly mask?: number;
  /** Marks whose rule it is (`ip rule` shows it as proto). */
  readonly protocol?: number;
}

/** In a deletion every field may be absent: the first rule that agrees with what is given goes. */
export type RuleMatch = Pick<Rule, "family"> & Partial<Rule>;

function ruleRequest(type: number, flags: number, verb: string, rule: RuleMatch): Request {
  const { from, to, iifName, oifName, table, priority, mark, mask, protocol } = rule;
  return {
    type,
    flags,
    write(w) {
      w.bytes4(rule.family === 4 ? 2 : 10, to?.prefixLength ?? 0, from?.prefixLength ?? 0, 0);
      w.bytes4(table !== undefined && table < 256 ? table : 0, 0, 0, table === undefined ? 0 : F.FR_ACT_TO_TBL);
      w.u32(0);
      if (to) w.attrBytes(F.FRA_DST, to.ip.bytes);
      if (from) w.attrBytes(F.FRA_SRC, from.ip.bytes);
      if (iifName !== undefined) w.attrString(F.FRA_IIFNAME, iifName);
      if (oifName !== undefined) w.attrString(F.FRA_OIFNAME, oifName);
      if (priority !== undefined) w.attrU32(F.FRA_PRIORITY, priority);
      if (table !== undefined && table >= 256) w.attrU32(F.FRA_TABLE, table);
      if (mark !== undefined) w.attrU32(F.FRA_FWMARK, mark);
      if (mask !== undefined) w.attrU32(F.FRA_FWMASK, mask);
      if (protocol !== undefined) w.attrU8(F.FRA_PROTOCOL, protocol);
    },
    describe: () => `ip -${rule.family} rule ${verb} ${describeRule(rule)}`,
  };
}

/** ip rule add …; EEXIST when the same rule is there. */
export function newRule(rule: Rule): Request {
  return ruleRequest(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, "add", rule);
}

/** ip rule del …; ENOENT when none matches. */
export function delRule(match: RuleMatch): Request {
  return ruleRequest(RTM_DELRULE, 0, "del", match);
}

/** ip rule show, for a dump. */
export function getRules(family: Family): Request {
  return {
    type: RTM_GETRULE,
    flags: 0,
    write(w) {
      w.u32(family === 4 ? 2 : 10);
      w.u32(0);
      w.u32(0);
    },
    describe: () => `ip -${family} rule show`,
  };
}

/** @throws {MalformedNetlink} */
export function parseRule(payload: Uint8Array): Rule {
  if (payload.length < FIB_RULE_HDR_BYTES) throw new MalformedNetlink("fib_rule_hdr is cut off", 0);
  let dst: Ip | undefined;
  let src: Ip | undefined;
  let iifName: string | undefined;
  let oifName: string | undefined;
  let priority = 0;
  let table = payload[4] ?? 0;
  let mark: number | undefined;
  let protocol: number | undefined;
  eachAttribute(payload, FIB_RULE_HDR_BYTES, (type, value) => {
    if (type === F.FRA_DST) dst = readIp(value);
    else if (type === F.FRA_SRC) src = readIp(value);
    else if (type === F.FRA_IIFNAME) iifName = readString(value);
    else if (type === F.FRA_OIFNAME) oifName = readString(value);
    else if (type === F.FRA_PRIORITY) priority = readU32(value, 0);
    else if (type === F.FRA_TABLE) table = readU32(value, 0);
    else if (type === F.FRA_FWMARK) mark = readU32(value, 0);
    else if (type === F.FRA_PROTOCOL) protocol = value[0];
  });
  return {
    family: payload[0] === 2 ? 4 : 6,
    priority,
    table,
    ...(src ? { from: { ip: src, prefixLength: payload[2] ?? 0 } } : {}),
    ...(dst ? { to: { ip: dst, prefixLength: payload[1] ?? 0 } } : {}),
    ...(iifName === undefined ? {} : { iifName }),
    ...(oifName === undefined ? {} : { oifName }),
    ...(mark ? { mark } : {}),
    ...(protocol ? { protocol } : {}),
  };
}

/** As `ip rule` has it. */
export function describeRule(rule: RuleMatch): string {
  const parts = [`from ${rule.from ? formatCidr(rule.from) : "all"}`];
  if (rule.to) parts.push(`to ${formatCidr(rule.to)}`);
  if (rule.iifName !== undefined) parts.push(`iif ${rule.iifName}`);
  if (rule.mark !== undefined) parts.push(`fwmark 0x${rule.mark.toString(16)}`);
  if (rule.table !== undefined) parts.push(`lookup ${rule.table}`);
  if (rule.priority !== undefined) parts.push(`pref ${rule.priority}`);
  return parts.join(" ");
}
