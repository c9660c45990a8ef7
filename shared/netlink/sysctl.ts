/** Kernel parameters through /proc/sys, of the calling thread's network namespace. */
import { O_WRONLY } from "../sys/linux.ts";
import { decodeUtf8, encodeUtf8, type Sys } from "../sys/sys.ts";

function pathOf(name: string): string {
  if (!/^net\//.test(name) || name.split("/").some((part) => part === "" || part === "..")) {
    throw new TypeError(`Cannot use the sysctl "${name}": want a path below /proc/sys/net such as net/ipv4/ip_forward`);
  }
  return `/proc/sys/${name}`;
}

/** @param name With slashes, as interface names may contain dots: `net/ipv4/conf/eth0.5/rp_filter`. @throws {SysError} */
export function readSysctl(sys: Sys, name: string): string {
  return decodeUtf8(sys.readFile(pathOf(name), 4096)).trim();
}

/** Writes only what differs. @returns The value before. @throws {SysError} */
export function writeSysctl(sys: Sys, name: string, value: string): string {
  const before = readSysctl(sys, name);
  if (before !== value) setSysctl(sys, name, value);
  return before;
}

/** Without a look at what it was: half the syscalls, where it is hardly ever so already. @throws {SysError} */
export function setSysctl(sys: Sys, name: string, value: string): void {
  const fd = sys.open(pathOf(name), O_WRONLY);
  try {
    sys.writeAll(fd, encodeUtf8(value));
  } finally {
    sys.close(fd);
  }
}
