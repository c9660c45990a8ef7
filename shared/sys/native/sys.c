/* Thin syscall wrappers: no policy, sizes checked, every errno carried up. See sys.h for the calling convention. */
#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436 /* include/uapi/asm-generic/unistd.h */
#endif

extern char **environ;

static double result(long value) { return value < 0 ? (double)-errno : (double)value; }

/* ---- files ---- */

static double sys_open(SysArg *a) { return result(open(a[0].s, a[1].i | O_CLOEXEC, a[2].i)); }
static double sys_close(SysArg *a) { return result(close(a[0].i)); }
static double sys_read(SysArg *a) { return result(read(a[0].i, a[1].b.ptr, a[1].b.len)); }
static double sys_write(SysArg *a) { return result(write(a[0].i, a[1].b.ptr, a[1].b.len)); }
static double sys_rename(SysArg *a) { return result(rename(a[0].s, a[1].s)); }
static double sys_unlink(SysArg *a) { return result(unlink(a[0].s)); }
static double sys_mkdir(SysArg *a) { return result(mkdir(a[0].s, a[1].i)); }
static double sys_fsync(SysArg *a) { return result(fsync(a[0].i)); }
static double sys_flock(SysArg *a) { return result(flock(a[0].i, a[1].i)); }
static double sys_access(SysArg *a) { return result(access(a[0].s, a[1].i)); }

/*
 * The pid that holds a POSIX lock on one byte of a file; 0 when nobody does. SQLite locks its files so. A child asks:
 * closing the file would drop every POSIX lock that this process has on it, and with them SQLite's protection.
 */
static double sys_lock_holder(SysArg *a) {
  int report[2], status;
  int32_t holder = 0;
  if (pipe2(report, O_CLOEXEC) < 0) return -errno;
  pid_t pid = fork();
  if (pid < 0) holder = -errno;
  if (pid == 0) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = a[1].i, .l_len = 1};
    int fd = open(a[0].s, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fcntl(fd, F_GETLK, &lock) < 0) holder = -errno;
    else holder = lock.l_type == F_UNLCK ? 0 : lock.l_pid;
    _exit(write(report[1], &holder, sizeof holder) != sizeof holder);
  }
  close(report[1]);
  if (pid > 0) {
    if (read(report[0], &holder, sizeof holder) != sizeof holder) holder = -EIO;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  }
  close(report[0]);
  return holder;
}

/*
 * A write lock on one byte, owned by the open file: unlike SQLite's own locks it stays when another descriptor of the
 * file is closed. The two kinds exclude each other.
 */
static double sys_try_lock_byte(SysArg *a) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = a[1].i, .l_len = 1};
  return result(fcntl(a[0].i, F_OFD_SETLK, &lock));
}

/* out: dev, ino, mode, size. */
static double sys_stat(SysArg *a) {
  struct stat st;
  double out[4];
  if (a[1].b.len < sizeof out) return -EINVAL;
  if (stat(a[0].s, &st) < 0) return -errno;
  out[0] = (double)st.st_dev, out[1] = (double)st.st_ino, out[2] = (double)st.st_mode, out[3] = (double)st.st_size;
  memcpy(a[1].b.ptr, out, sizeof out);
  return 0;
}

/* The file system's magic number: tells nsfs from a plain file. */
static double sys_fs_type(SysArg *a) {
  struct statfs fs;
  return statfs(a[0].s, &fs) < 0 ? -errno : (double)fs.f_type;
}

/* ---- process ---- */

static double sys_getpid(SysArg *a) { (void)a; return getpid(); }
static double sys_kill(SysArg *a) { return result(kill(a[0].i, a[1].i)); }
static double sys_setns(SysArg *a) { return result(setns(a[0].i, a[1].i)); }
static double sys_unshare(SysArg *a) { return result(unshare(a[0].i)); }
static double sys_getrandom(SysArg *a) { return result(getrandom(a[0].b.ptr, a[0].b.len, 0)); }

/* The kernel's release, as uname -r; returns its length. */
static double sys_release(SysArg *a) {
  struct utsname name;
  if (uname(&name) < 0) return -errno;
  size_t n = strlen(name.release);
  if (n > a[0].b.len) return -ENAMETOOLONG;
  memcpy(a[0].b.ptr, name.release, n);
  return (double)n;
}

/* Copies the environment as NUL-terminated strings; returns the bytes needed, also when they do not fit. */
static double sys_environ(SysArg *a) {
  size_t used = 0;
  for (char **e = environ; e && *e; e++) {
    size_t n = strlen(*e) + 1;
    if (used + n <= a[0].b.len) memcpy(a[0].b.ptr + used, *e, n);
    used += n;
  }
  return (double)used;
}

/* Milliseconds of a clock, with fraction. */
static double sys_clock(SysArg *a) {
  struct timespec ts;
  if (clock_gettime(a[0].i, &ts) < 0) return -errno;
  return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/*
 * Starts a program with pipes on its standard streams.
 * out int32[4]: pid, and our ends of stdin, stdout, stderr.
 */
static double sys_spawn(SysArg *a) {
  if (a[3].b.len < 4 * sizeof(int32_t)) return -EINVAL;
  int32_t *out = (int32_t *)a[3].b.ptr;
  int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, err = 0;
  for (int i = 0; i < 3 && !err; i++)
    if (pipe2(pipes[i], O_CLOEXEC) < 0) err = errno;
  pid_t pid = -1;
  if (!err) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipes[0][0], 0);
    posix_spawn_file_actions_adddup2(&actions, pipes[1][1], 1);
    posix_spawn_file_actions_adddup2(&actions, pipes[2][1], 2);
    err = posix_spawn(&pid, a[0].s, &actions, NULL, a[1].v, a[2].v);
    posix_spawn_file_actions_destroy(&actions);
  }
  int theirs[3] = {pipes[0][0], pipes[1][1], pipes[2][1]};
  int ours[3] = {pipes[0][1], pipes[1][0], pipes[2][0]};
  for (int i = 0; i < 3; i++) {
    if (theirs[i] >= 0) close(theirs[i]);
    if (err && ours[i] >= 0) close(ours[i]);
  }
  if (err) return -err;
  out[0] = pid;
  memcpy(out + 1, ours, sizeof ours);
  return 0;
}

/* Waits for a child; the raw wait status. */
static double sys_waitpid(SysArg *a) {
  int status = 0;
  pid_t pid;
  do pid = waitpid(a[0].i, &status, a[1].i);
  while (pid < 0 && errno == EINTR);
  return pid < 0 ? -errno : pid == 0 ? -EAGAIN : status;
}

/* The same with the child's resource use. out double[4]: wait status, user ms, system ms, peak RSS in KiB. Returns the pid. */
static double sys_wait4(SysArg *a) {
  struct rusage use;
  int status = 0;
  if (a[2].b.len < 4 * sizeof(double)) return -EINVAL;
  pid_t pid;
  do pid = wait4(a[0].i, &status, a[1].i, &use);
  while (pid < 0 && errno == EINTR);
  if (pid <= 0) return pid < 0 ? -errno : 0;
  double out[4] = {status, (double)use.ru_utime.tv_sec * 1e3 + (double)use.ru_utime.tv_usec / 1e3,
                   (double)use.ru_stime.tv_sec * 1e3 + (double)use.ru_stime.tv_usec / 1e3, (double)use.ru_maxrss};
  memcpy(a[2].b.ptr, out, sizeof out);
  return pid;
}

/* ---- sockets ---- */

static double sys_socket(SysArg *a) { return result(socket(a[0].i, a[1].i | SOCK_CLOEXEC, a[2].i)); }
static double sys_setsockopt(SysArg *a) { return result(setsockopt(a[0].i, a[1].i, a[2].i, &a[3].i, sizeof a[3].i)); }
static double sys_send(SysArg *a) { return result(send(a[0].i, a[1].b.ptr, a[1].b.len, a[2].i | MSG_NOSIGNAL)); }
static double sys_recv(SysArg *a) { return result(recv(a[0].i, a[1].b.ptr, a[1].b.len, a[2].i)); }

static double sys_bind_netlink(SysArg *a) {
  struct sockaddr_nl nl = {.nl_family = AF_NETLINK, .nl_groups = (uint32_t)a[1].i};
  return result(bind(a[0].i, (struct sockaddr *)&nl, sizeof nl));
}

/* A leading '@' means the abstract name space; an empty name lets the kernel choose one when binding. */
static long unix_address(const char *name, struct sockaddr_un *un, socklen_t *len) {
  size_t n = strlen(name);
  memset(un, 0, sizeof *un);
  un->sun_family = AF_UNIX;
  if (n >= sizeof un->sun_path) return -ENAMETOOLONG;
  memcpy(un->sun_path, name, n);
  if (name[0] == '@') un->sun_path[0] = 0;
  *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (name[0] != '@' && n > 0));
  return 0;
}

static double sys_bind_unix(SysArg *a) {
  struct sockaddr_un un;
  socklen_t len;
  long err = unix_address(a[1].s, &un, &len);
  return err ? (double)err : result(bind(a[0].i, (struct sockaddr *)&un, len));
}

static double sys_connect_unix(SysArg *a) {
  struct sockaddr_un un;
  socklen_t len;
  long err = unix_address(a[1].s, &un, &len);
  return err ? (double)err : result(connect(a[0].i, (struct sockaddr *)&un, len));
}

static double sys_sendto_unix(SysArg *a) {
  struct sockaddr_un un;
  socklen_t len;
  long err = unix_address(a[1].s, &un, &len);
  if (err) return (double)err;
  return result(sendto(a[0].i, a[2].b.ptr, a[2].b.len, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&un, len));
}

/* Writes the socket's own unix name ('@' first when abstract) into the buffer; returns its length. */
static double sys_unix_name(SysArg *a) {
  struct sockaddr_un un;
  socklen_t len = sizeof un;
  if (getsockname(a[0].i, (struct sockaddr *)&un, &len) < 0) return -errno;
  size_t n = len - offsetof(struct sockaddr_un, sun_path);
  if (n > a[1].b.len) return -ENOBUFS;
  memcpy(a[1].b.ptr, un.sun_path, n);
  if (n > 0 && un.sun_path[0] == 0) a[1].b.ptr[0] = '@';
  return (double)n;
}

/* fds int32[n][3]: fd, events wanted, events seen (written). Returns how many are ready; 0 on timeout. */
static double sys_poll(SysArg *a) {
  struct pollfd p[16];
  int32_t *fds = (int32_t *)a[0].b.ptr;
  size_t n = a[0].b.len / (3 * sizeof(int32_t));
  if (n > 16) return -EINVAL;
  for (size_t i = 0; i < n; i++) p[i] = (struct pollfd){fds[3 * i], (short)fds[3 * i + 1], 0};
  int ready = poll(p, n, a[1].i);
  if (ready < 0) return -errno;
  for (size_t i = 0; i < n; i++) fds[3 * i + 2] = p[i].revents;
  return ready;
}

/* A syscall that leaves errno alone, for a child that shares it with its parent. */
static long raw_syscall(long number, long a, long b, long c) {
#if defined(__x86_64__)
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
#else
#error "raw_syscall() is not written for this processor"
#endif
}

struct Detached {
  int sock, report, kept, linger_ms;
  size_t length;
  uint8_t message[65536];
};
#define CHILD_STACK_BYTES ((size_t)16 << 10)

static int32_t send_and_wait(const struct Detached *d) {
  union { struct nlmsghdr h; char bytes[4096]; } reply;
  if (d->length == 0) return 0;
  long n = raw_syscall(SYS_write, 0, (long)d->message, (long)d->length);
  if (n < 0) return (int32_t)n;
  for (;;) {
    n = raw_syscall(SYS_read, 0, (long)&reply, sizeof reply);
    if (n == -EINTR) continue;
    if (n < (long)sizeof reply.h) return n < 0 ? (int32_t)n : -EPROTO;
    if (reply.h.nlmsg_type == NLMSG_ERROR) return ((struct nlmsgerr *)NLMSG_DATA(&reply.h))->error;
  }
}

/* Calls nothing of the C library: it may run in its parent's memory, or be the child of a process with threads. */
static int detached_main(void *arg) {
  const struct Detached *d = arg;
  raw_syscall(SYS_setsid, 0, 0, 0);
  /* Keep the socket and the pipe as 0 and 1, what the message names as 2, drop everything else. */
  long sock = raw_syscall(SYS_fcntl, d->sock, F_DUPFD, 10), report = raw_syscall(SYS_fcntl, d->report, F_DUPFD, 10);
  long kept = d->kept >= 0 ? raw_syscall(SYS_fcntl, d->kept, F_DUPFD, 10) : -1;
  raw_syscall(SYS_dup3, sock, 0, 0);
  raw_syscall(SYS_dup3, report, 1, 0);
  if (kept >= 0) raw_syscall(SYS_dup3, kept, 2, 0);
  int first = kept >= 0 ? 3 : 2;
  if (raw_syscall(SYS_close_range, first, ~0U, 0) < 0) /* Linux 5.9 */
    for (int fd = first; fd < 64; fd++) raw_syscall(SYS_close, fd, 0, 0);
  int32_t verdict = send_and_wait(d);
  raw_syscall(SYS_write, 1, (long)&verdict, sizeof verdict); /* nobody need read it: our callers ignore SIGPIPE */
  raw_syscall(SYS_close, 1, 0, 0);
  struct timespec linger = {d->linger_ms / 1000, d->linger_ms % 1000 * 1000000L};
  if (d->linger_ms > 0) raw_syscall(SYS_nanosleep, (long)&linger, 0, 0);
  raw_syscall(SYS_exit_group, 0, 0, 0);
  return 0;
}

/*
 * Sends one netlink request from a child process and returns at once with the read end of a pipe (the child's
 * verdict: one int32, 0 or -errno, after the kernel's acknowledgement) in out[1], and the child's pid in out[0].
 * Without a message the child only keeps the socket open.
 *
 * The last argument is for how many milliseconds the child keeps the socket after its verdict.
 *
 * Why a child: RTM_DELLINK unlists the link within a millisecond and then keeps its caller asleep in
 * netdev_run_todo() for tens of milliseconds. The caller that matters waits for the notification instead, and the
 * child does the sleeping. It keeps none of our descriptors, so nobody who waits for EOF on them waits for it.
 *
 * A plugin, which has one thread and ends soon, lends the child its memory: nothing is copied, and taking the memory
 * apart at the end is the child's part, too.
 */
static double sys_send_detached(SysArg *a) {
  if (a[2].b.len < 2 * sizeof(int32_t)) return -EINVAL;
  int32_t *out = (int32_t *)a[2].b.ptr;
  int report[2];
  struct Detached *d = NULL;
  if (a[1].b.len > sizeof d->message) return -EMSGSIZE;
  size_t bytes = sizeof *d + CHILD_STACK_BYTES;
  d = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (d == MAP_FAILED) return -errno;
  pid_t pid = -1;
  int err = pipe2(report, O_CLOEXEC) < 0 ? errno : 0;
  if (!err) {
    d->sock = a[0].i, d->report = report[1], d->kept = a[3].i, d->linger_ms = a[4].i, d->length = a[1].b.len;
    memcpy(d->message, a[1].b.ptr, d->length);
#ifdef TERWAY_LENDS_MEMORY
    pid = clone(detached_main, (uint8_t *)d + bytes, CLONE_VM | SIGCHLD, d);
#else
    pid = fork();
    if (pid == 0) detached_main(d);
    munmap(d, bytes);
    d = NULL;
#endif
    if (pid < 0) err = errno;
    close(report[1]);
    if (err) close(report[0]);
  }
  if (err && d) munmap(d, bytes);
  if (err) return -err;
  out[0] = pid;
  out[1] = report[0];
  return 0;
}

/* ---- eBPF ---- */

static double bpf(int cmd, union bpf_attr *attr) {
  return result((int)syscall(SYS_bpf, cmd, attr, sizeof *attr));
}

/* An array of one zeroed value, which is what a program keeps its state in. */
static double sys_bpf_array(SysArg *a) {
  union bpf_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.map_type = BPF_MAP_TYPE_ARRAY;
  attr.key_size = 4;
  attr.value_size = (uint32_t)a[0].i;
  attr.max_entries = 1;
  return bpf(BPF_MAP_CREATE, &attr);
}

static double sys_bpf_load(SysArg *a) {
  union bpf_attr attr;
  if (a[1].b.len % sizeof(struct bpf_insn) != 0) return -EINVAL;
  memset(&attr, 0, sizeof attr);
  attr.prog_type = (uint32_t)a[0].i;
  attr.insn_cnt = (uint32_t)(a[1].b.len / sizeof(struct bpf_insn));
  attr.insns = (uint64_t)(uintptr_t)a[1].b.ptr;
  attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
  /* The verifier gives up with EAGAIN when a signal comes, e.g. of a child that ended; libbpf tries five times, too. */
  double fd;
  for (int tries = 0; (fd = bpf(BPF_PROG_LOAD, &attr)) == -EAGAIN && tries < 4;) tries++;
  return fd;
}

const SysFunction sys_functions[] = {
    {"open", "sii", sys_open},           {"close", "i", sys_close},
    {"read", "ib", sys_read},            {"write", "ib", sys_write},
    {"rename", "ss", sys_rename},        {"unlink", "s", sys_unlink},
    {"mkdir", "si", sys_mkdir},          {"fsync", "i", sys_fsync},
    {"flock", "ii", sys_flock},          {"access", "si", sys_access},
    {"stat", "sb", sys_stat},            {"fsType", "s", sys_fs_type},
    {"lockHolder", "si", sys_lock_holder}, {"tryLockByte", "ii", sys_try_lock_byte},
    {"getpid", "", sys_getpid},          {"kill", "ii", sys_kill},
    {"setns", "ii", sys_setns},          {"unshare", "i", sys_unshare},
    {"getrandom", "b", sys_getrandom},   {"environ", "b", sys_environ},
    {"release", "b", sys_release},
    {"clock", "i", sys_clock},           {"spawn", "svvb", sys_spawn},
    {"waitpid", "ii", sys_waitpid},      {"wait4", "iib", sys_wait4},
    {"socket", "iii", sys_socket},       {"setsockopt", "iiii", sys_setsockopt},
    {"send", "ibi", sys_send},           {"recv", "ibi", sys_recv},
    {"bindNetlink", "ii", sys_bind_netlink}, {"bindUnix", "is", sys_bind_unix},
    {"connectUnix", "is", sys_connect_unix}, {"sendToUnix", "isb", sys_sendto_unix},
    {"unixName", "ib", sys_unix_name},   {"poll", "bi", sys_poll},
    {"sendDetached", "ibbii", sys_send_detached},
    {"bpfArray", "i", sys_bpf_array},    {"bpfLoad", "ib", sys_bpf_load},
};
const size_t sys_function_count = sizeof sys_functions / sizeof *sys_functions;
