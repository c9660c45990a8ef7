// include/uapi/linux/bpf.h, bpf_common.h; Linux 6.1
export const BPF_PROG_TYPE_SCHED_CLS = 3;
export const BPF_FUNC_ktime_get_ns = 5;
export const BPF_PSEUDO_MAP_VALUE = 2;

// Opcodes, put together from class, size or operation, and mode or source.
export const BPF_LD_IMM64 = 0x18;
export const BPF_LDX_W = 0x61;
export const BPF_LDX_DW = 0x79;
export const BPF_STX_W = 0x63;
export const BPF_STX_DW = 0x7b;
export const BPF_STX_ATOMIC_DW = 0xdb;
export const BPF_MOV64_REG = 0xbf;
export const BPF_MOV64_IMM = 0xb7;
export const BPF_ADD64_REG = 0x0f;
export const BPF_SUB64_REG = 0x1f;
export const BPF_MUL64_REG = 0x2f;
export const BPF_OR64_IMM = 0x47;
export const BPF_RSH64_IMM = 0x77;
export const BPF_JEQ_IMM = 0x15;
export const BPF_JSGT_REG = 0x6d;
export const BPF_JSGE_REG = 0x7d;
export const BPF_CALL = 0x85;
export const BPF_EXIT = 0x95;

// struct __sk_buff
export const SKB_LEN = 0;
export const SKB_TC_INDEX = 44;
