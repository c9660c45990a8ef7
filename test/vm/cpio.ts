/** cpio archives in the format that the kernel unpacks as initramfs: "newc", Documentation/driver-api/early-userspace. */

export type CpioEntry =
  | { readonly path: string; readonly kind: "folder" }
  | { readonly path: string; readonly kind: "file"; readonly data: Uint8Array; readonly executable?: boolean }
  | { readonly path: string; readonly kind: "device"; readonly major: number; readonly minor: number };

const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

const hex = (n: number) => n.toString(16).padStart(8, "0").toUpperCase();
const pad = (bytes: number) => new Uint8Array((4 - (bytes % 4)) % 4);

function modeOf(entry: CpioEntry): number {
  if (entry.kind === "folder") return S_IFDIR | 0o755;
  if (entry.kind === "device") return S_IFCHR | 0o600;
  return S_IFREG | (entry.executable ? 0o755 : 0o644);
}

function record(inode: number, entry: CpioEntry): Uint8Array[] {
  const name = Buffer.from(`${entry.path}\0`);
  const data = entry.kind === "file" ? entry.data : new Uint8Array();
  const [major, minor] = entry.kind === "device" ? [entry.major, entry.minor] : [0, 0];
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  const numbers = [inode, modeOf(entry), 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0];
  const header = Buffer.from(`070701${numbers.map(hex).join("")}`);
  return [header, name, pad(header.length + name.length), data, pad(data.length)];
}

/** One archive. Folders must come before what is in them. The kernel takes several, one after the other. */
export function cpio(entries: readonly CpioEntry[]): Buffer {
  const trailer: CpioEntry = { path: "TRAILER!!!", kind: "file", data: new Uint8Array() };
  return Buffer.concat([...entries, trailer].flatMap((entry, i) => record(i + 1, entry)));
}
