import { describe, expect, it } from "vitest";
import { parseIp } from "../net/ip.ts";
import { parseLogged } from "./nflog.ts";
import { Writer } from "./wire/writer.ts";

function message(packet: Uint8Array) {
  const w = new Writer();
  w.u32(0);
  w.attrString(10, "terway-policy drop ingress");
  w.attrBytes(9, packet);
  return { type: 0x400, flags: 0, seq: 0, pid: 0, payload: w.finish() };
}
const four = (protocol: number, fragment: number, rest: readonly number[]) =>
  Uint8Array.of(0x45, 0, 0, 40, 0, 0, fragment >> 8, fragment, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, ...rest);
const six = (next: number, rest: readonly number[]) =>
  Uint8Array.of(0x60, 0, 0, 0, 0, 8, next, 64, ...parseIp("fd00::1").bytes, ...parseIp("fd00::2").bytes, ...rest);
const ports = [0x1f, 0x90, 0, 80];

describe("a packet that a rule told", () => {
  it.each([
    ["TCP", four(6, 0, ports), { from: "10.0.0.1", to: "10.0.0.2", protocol: "tcp", port: 80 }],
    ["SCTP over IPv6", six(132, ports), { from: "fd00::1", to: "fd00::2", protocol: "sctp", port: 80 }],
    ["ICMP", four(1, 0, [8, 0, 0, 0]), { from: "10.0.0.1", to: "10.0.0.2", protocol: "icmp" }],
    ["a later fragment", four(17, 185, ports), { from: "10.0.0.1", to: "10.0.0.2", protocol: "udp" }],
    ["one cut before its ports", four(6, 0, [1, 2]), { from: "10.0.0.1", to: "10.0.0.2", protocol: "tcp" }],
    ["another protocol", four(47, 0, []), { from: "10.0.0.1", to: "10.0.0.2", protocol: "47" }],
  ])("is read: %s", (_what, packet, read) =>
    expect(parseLogged(message(packet))).toEqual({ prefix: "terway-policy drop ingress", ...read }),
  );

  it.each([
    ["nothing", new Uint8Array(0)],
    ["half a header", four(6, 0, []).subarray(0, 19)],
    ["half a header of IPv6", six(6, []).subarray(0, 39)],
    ["no IP", Uint8Array.of(0xf0, 1, 2, 3)],
  ])("is none: %s", (_what, packet) => expect(parseLogged(message(packet))).toBeUndefined());
});
