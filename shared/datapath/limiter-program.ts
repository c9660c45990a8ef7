/**
 * The eBPF programs of bandwidth and priority: what a pod sends is held to a rate at the node's end of its link, where
 * the pod has no hand in it; and packets are given the class by which an ENI orders them.
 *
 * Pure: instructions come out as bytes (struct bpf_insn, 8 bytes each).
 */
import * as B from "../netlink/uapi/bpf.ts";
import { TC_ACT_SHOT, TC_ACT_UNSPEC } from "../netlink/uapi/pkt-cls.ts";

export interface LimiterSpec {
  /** Absent: nothing is dropped. */
  readonly limit?: {
    readonly bytesPerSecond: number;
    /** What may come at once after a silence. */
    readonly burstBytes: number;
  };
  /** Written into skb->tc_index, which stays with the packet on its way through the node. */
  readonly priorityClass?: number;
}

/** The map's value: u64, the moment (CLOCK_MONOTONIC, ns) up to which the allowance is used. */
export const LIMITER_STATE_BYTES = 8;

/** Nanoseconds per byte are counted in 2^-20: exact enough up to a Tbit/s, and 64 KiB at 1 kbit/s fit into 64 bits. */
const FRACTION_BITS = 20;

/** r0 to r9 */
type Register = number;

class Assembler {
  readonly words: number[] = [];

  op(code: number, dst: Register = 0, src: Register = 0, offset = 0, imm = 0): void {
    this.words.push(((code & 0xff) | (dst << 8) | (src << 12) | ((offset & 0xffff) << 16)) >>> 0, imm | 0);
  }

  imm64(dst: Register, value: number): void {
    this.op(B.BPF_LD_IMM64, dst, 0, 0, value % 2 ** 32);
    this.op(0, 0, 0, 0, Math.floor(value / 2 ** 32));
  }

  mapValue(dst: Register, mapFd: number): void {
    this.op(B.BPF_LD_IMM64, dst, B.BPF_PSEUDO_MAP_VALUE, 0, mapFd);
    this.op(0);
  }

  bytes(): Uint8Array {
    return new Uint8Array(Uint32Array.from(this.words).buffer);
  }
}

function nanosOf(bytes: number, bytesPerSecond: number): number {
  return Math.floor((bytes * 1e9) / bytesPerSecond);
}

/**
 * A classifier for clsact, direct-action. Passing packets get TC_ACT_UNSPEC, so that filters of others are still asked.
 *
 * Each packet moves the state forward by the time that its bytes are worth; one that would move it past the present is
 * dropped. Two processors may read the state at once and let one packet more through, but no addition is lost.
 *
 * @param mapFd An array of one value of {@link LIMITER_STATE_BYTES}; not read without a limit.
 */
export function limiterProgram(spec: LimiterSpec, mapFd: number): Uint8Array {
  const a = new Assembler();
  const { limit, priorityClass } = spec;
  a.op(B.BPF_MOV64_REG, 6, 1); // r6 = skb
  if (priorityClass !== undefined) {
    a.op(B.BPF_MOV64_IMM, 0, 0, 0, priorityClass);
    a.op(B.BPF_STX_W, 6, 0, B.SKB_TC_INDEX);
  }
  if (limit !== undefined) {
    a.mapValue(7, mapFd); // r7 = &state
    a.op(B.BPF_CALL, 0, 0, 0, B.BPF_FUNC_ktime_get_ns);
    a.op(B.BPF_MOV64_REG, 1, 0); // r1 = now
    a.op(B.BPF_LDX_W, 2, 6, B.SKB_LEN); // r2 = what the packet is worth
    a.imm64(3, Math.round((1e9 * 2 ** FRACTION_BITS) / limit.bytesPerSecond));
    a.op(B.BPF_MUL64_REG, 2, 3);
    a.op(B.BPF_RSH64_IMM, 2, 0, 0, FRACTION_BITS);
    a.op(B.BPF_LDX_DW, 4, 7); // r4 = state
    a.imm64(3, nanosOf(limit.burstBytes, limit.bytesPerSecond));
    a.op(B.BPF_MOV64_REG, 5, 1);
    a.op(B.BPF_SUB64_REG, 5, 3); // r5 = now - burst
    a.op(B.BPF_JSGE_REG, 4, 5, 2);
    a.op(B.BPF_MOV64_REG, 4, 5); // silent for long: no more than the burst is saved up
    a.op(B.BPF_STX_DW, 7, 5);
    a.op(B.BPF_ADD64_REG, 4, 2);
    a.op(B.BPF_JSGT_REG, 4, 1, 3); // past the present: drop
    a.op(B.BPF_STX_ATOMIC_DW, 7, 2);
  }
  a.op(B.BPF_MOV64_IMM, 0, 0, 0, TC_ACT_UNSPEC);
  a.op(B.BPF_EXIT);
  if (limit !== undefined) {
    a.op(B.BPF_MOV64_IMM, 0, 0, 0, TC_ACT_SHOT);
    a.op(B.BPF_EXIT);
  }
  return a.bytes();
}

/** What `tc filter show` prints of it, and by which it is recognised: the same words mean the same program. */
export function limiterName(spec: LimiterSpec): string {
  const parts = ["terway-bandwidth"];
  if (spec.limit) parts.push(`limit ${Math.round(spec.limit.bytesPerSecond * 8)}bit burst ${spec.limit.burstBytes}b`);
  if (spec.priorityClass !== undefined) parts.push(`class ${spec.priorityClass}`);
  return parts.join(" ");
}

/**
 * A classifier for the root qdisc of an ENI: the class that {@link limiterProgram} wrote into the packet. 0 (none) leaves
 * it to the qdisc's default.
 */
export function classOfPacketProgram(qdiscMajor: number): Uint8Array {
  const a = new Assembler();
  a.op(B.BPF_LDX_W, 0, 1, B.SKB_TC_INDEX);
  a.op(B.BPF_JEQ_IMM, 0, 0, 1);
  a.op(B.BPF_OR64_IMM, 0, 0, 0, qdiscMajor << 16);
  a.op(B.BPF_EXIT);
  return a.bytes();
}
