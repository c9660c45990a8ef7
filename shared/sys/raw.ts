/**
 * The native table of `native/sys.c`, as both engines expose it. A call returns the syscall's result or `-errno`.
 * Only `sys.ts` uses it; everything else uses the `Sys` made from it.
 */
export interface RawSys {
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  read(fd: number, into: Uint8Array): number;
  write(fd: number, bytes: Uint8Array): number;
  rename(from: string, to: string): number;
  unlink(path: string): number;
  mkdir(path: string, mode: number): number;
  fsync(fd: number): number;
  flock(fd: number, operation: number): number;
  access(path: string, mode: number): number;
  stat(path: string, out: Float64Array): number;
  fsType(path: string): number;
  lockHolder(path: string, offset: number): number;
  tryLockByte(fd: number, offset: number): number;
  getpid(): number;
  kill(pid: number, signal: number): number;
  setns(fd: number, nstype: number): number;
  unshare(flags: number): number;
  getrandom(into: Uint8Array): number;
  environ(into: Uint8Array): number;
  release(into: Uint8Array): number;
  clock(id: number): number;
  spawn(path: string, argv: readonly string[], env: readonly string[], out: Int32Array): number;
  waitpid(pid: number, options: number): number;
  wait4(pid: number, options: number, out: Float64Array): number;
  socket(domain: number, type: number, protocol: number): number;
  setsockopt(fd: number, level: number, name: number, value: number): number;
  send(fd: number, bytes: Uint8Array, flags: number): number;
  recv(fd: number, into: Uint8Array, flags: number): number;
  bindNetlink(fd: number, groups: number): number;
  bindUnix(fd: number, name: string): number;
  connectUnix(fd: number, name: string): number;
  sendToUnix(fd: number, name: string, bytes: Uint8Array): number;
  unixName(fd: number, into: Uint8Array): number;
  poll(fds: Int32Array, timeoutMs: number): number;
  sendDetached(fd: number, bytes: Uint8Array, out: Int32Array, keepFd: number, lingerMs: number): number;
  bpfArray(valueBytes: number): number;
  bpfLoad(programType: number, instructions: Uint8Array): number;
}
