/** The command line of the emulated machine. */

export interface Machine {
  readonly vmlinuz: string;
  readonly initramfs: string;
  readonly cpus: number;
  readonly memoryMiB: number;
  /** Unix sockets on which somebody listens. */
  readonly sockets: {
    readonly fileSystem: string;
    readonly events: string;
    readonly out: string;
    readonly err: string;
  };
}

/** The kernel's own. A panic ends the machine: it "reboots" at once, and -no-reboot makes that an end. */
const KERNEL_ARGS = [
  "console=ttyS0",
  "quiet",
  "loglevel=5",
  "panic=-1",
  "oops=panic",
  "mitigations=off", // all that counts under emulation is fewer instructions
  "init_on_alloc=0",
  "random.trust_cpu=on",
  "nowatchdog",
  "audit=0",
  "apparmor=0",
  "rdinit=/init",
];

/**
 * Software emulation only: accel=tcg is named so that qemu never tries /dev/kvm, which may be there and hang. The
 * memory is shared because virtiofsd reads and writes it. No network card: all links of the tests are made inside.
 */
export function qemuArgs(m: Machine): string[] {
  const port = (nr: number, name: string, path: string) => [
    ...["-chardev", `socket,id=${name},path=${path}`],
    ...["-device", `virtserialport,bus=ports.0,nr=${nr},chardev=${name},name=${name}`],
  ];
  return [
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"],
    ...["-machine", "q35,usb=off,vmport=off,memory-backend=memory"],
    ...["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", String(m.cpus), "-m", `${m.memoryMiB}M`],
    ...["-object", `memory-backend-memfd,id=memory,size=${m.memoryMiB}M,share=on`],
    ...["-kernel", m.vmlinuz, "-initrd", m.initramfs, "-append", KERNEL_ARGS.join(" ")],
    ...["-serial", "stdio"],
    ...["-chardev", `socket,id=fs,path=${m.sockets.fileSystem}`],
    ...["-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024"],
    ...["-device", "virtio-serial-pci,id=ports"],
    ...port(1, "events", m.sockets.events),
    ...port(2, "out", m.sockets.out),
    ...port(3, "err", m.sockets.err),
  ];
}
