/*
 * The executable around one plugin. The engine's memory is part of the file: build.ts lets the first build of it start
 * the engine, read the plugin's bytecode and define its functions, and then stop (--freeze); what the memory then holds
 * becomes the section .snapshot of the second build, in which the call goes on from there. Starting the engine and
 * reading the code took more than half of an ADD. Code and snapshot are at fixed addresses, so every pointer holds; what
 * the kernel or the C library give to one process (descriptors, vdso, random numbers) is not in that memory.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quickjs.h"
#include "quickjs_binding.h"
#include "sqlite_schema.h"

extern uint8_t snapshot_start[], snapshot_end[];
extern const uint8_t program_start[], program_end[]; /* bytecode; of no use in a frozen build */

/*
 * The engine's memory: power-of-two-ish size classes carved from one reserved region, recycled through free lists,
 * never given back: the process lives for milliseconds, and the C library's allocator cost a tenth of its life.
 * A header of 8 bytes before each block holds its size class, so blocks are 16-byte aligned from offset 8.
 */
#define REGION_BYTES ((size_t)1 << 30) /* reserved address space, not memory */
#define CLASSES 112
#define POPULATE_BYTES ((size_t)96 << 10) /* what a call of ADD or DEL touches beside the snapshot */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* include/uapi/asm-generic/mman-common.h */
#endif

static uint8_t *region_next, *region_end;
static struct FreeBlock { struct FreeBlock *next; } *free_lists[CLASSES];

#define PAGE_BYTES 4096
#define MAX_PAGES 1024

/* First thing in .snapshot. */
struct Header {
  uint64_t bytes; /* 0: not frozen yet */
  uint8_t touched[MAX_PAGES / 8]; /* a bit for each page that a call writes to: build.ts saw it in a rehearsal */
  JSRuntime *runtime;
  JSContext *context;
  struct FreeBlock *free_lists[CLASSES];
  struct TerwaySchema store_schema;
};
#define HEADER ((struct Header *)snapshot_start)
#define HEADER_BYTES ((sizeof(struct Header) + 15) & ~(size_t)15)

static unsigned class_of(size_t size) { /* four classes to each power of two, from 16 bytes */
  if (size <= 16) return 0;
  unsigned log = 63 - (unsigned)__builtin_clzll(size - 1);
  return (log - 4) * 4 + (unsigned)((size - 1) >> (log - 2) & 3) + 1;
}

static size_t class_size(unsigned c) {
  if (c == 0) return 16;
  unsigned log = (c - 1) / 4 + 4, quarter = (c - 1) % 4 + 1;
  return ((size_t)1 << log) + ((size_t)quarter << (log - 2));
}

static uint32_t *header_of(const void *ptr) { return (uint32_t *)((uint8_t *)(uintptr_t)ptr - 8); }

static void *host_malloc(JSMallocState *s, size_t size) {
  (void)s;
  unsigned c = class_of(size);
  if (c >= CLASSES) return NULL;
  struct FreeBlock *block = free_lists[c];
  if (block) {
    free_lists[c] = block->next;
    return block;
  }
  size_t total = (class_size(c) + 8 + 15) & ~(size_t)15;
  if ((size_t)(region_end - region_next) < total) return NULL;
  uint8_t *ptr = region_next + 8;
  region_next += total;
  *header_of(ptr) = c;
  return ptr;
}

static void host_free(JSMallocState *s, void *ptr) {
  (void)s;
  if (!ptr) return;
  struct FreeBlock *block = ptr;
  unsigned c = *header_of(ptr);
  block->next = free_lists[c];
  free_lists[c] = block;
}

static size_t host_usable_size(const void *ptr) { return ptr ? class_size(*header_of(ptr)) : 0; }

static void *host_realloc(JSMallocState *s, void *ptr, size_t size) {
  if (!ptr) return size ? host_malloc(s, size) : NULL;
  if (!size) {
    host_free(s, ptr);
    return NULL;
  }
  size_t have = host_usable_size(ptr);
  if (size <= have) return ptr;
  void *moved = host_malloc(s, size);
  if (!moved) return NULL;
  memcpy(moved, ptr, have);
  host_free(s, ptr);
  return moved;
}

static const JSMallocFunctions host_allocator = {host_malloc, host_free, host_realloc, host_usable_size};

/* SQLite's memory comes from the same place: a store call makes some hundred allocations. */
static void *sql_malloc(int n) { return host_malloc(NULL, (size_t)n); }
static void sql_free(void *p) { host_free(NULL, p); }
static void *sql_realloc(void *p, int n) { return host_realloc(NULL, p, (size_t)n); }
static int sql_size(void *p) { return (int)host_usable_size(p); }
static int sql_roundup(int n) { return (int)class_size(class_of((size_t)n)); }
static int sql_init(void *opaque) { (void)opaque; return SQLITE_OK; }
static void sql_shutdown(void *opaque) { (void)opaque; }
static const sqlite3_mem_methods sql_allocator = {sql_malloc, sql_free, sql_realloc, sql_size, sql_roundup, sql_init, sql_shutdown, NULL};

static int report(JSContext *ctx) {
  JSValue error = JS_GetException(ctx);
  const char *text = JS_ToCString(ctx, error);
  JSValue stack = JS_GetPropertyStr(ctx, error, "stack");
  const char *trace = JS_ToCString(ctx, stack);
  fprintf(stderr, "%s\n%s", text ? text : "unknown error", trace ? trace : "");
  return 70; /* EX_SOFTWARE: the plugin's own runner turns every error it can see into CNI JSON */
}

static void reserve_region(void) {
  /* Beside the snapshot, if nobody is there, for its page tables. */
  void *beside = (void *)(((uintptr_t)snapshot_end + PAGE_BYTES - 1) & ~(uintptr_t)(PAGE_BYTES - 1));
  region_next = mmap(beside, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region_next == MAP_FAILED) {
    fputs("cannot reserve memory for the engine\n", stderr);
    exit(71); /* EX_OSERR */
  }
  region_end = region_next + REGION_BYTES;
  madvise(region_next, POPULATE_BYTES, MADV_POPULATE_WRITE); /* Linux 5.14; elsewhere pages come one fault at a time */
}

/* An engine with the intrinsics that the plugins use, in which the program has run: a plugin only defined its main. */
static JSContext *start_engine(void) {
  JSRuntime *rt = JS_NewRuntime2(&host_allocator, NULL);
  JSContext *ctx = rt ? JS_NewContextRaw(rt) : NULL;
  if (!ctx) {
    fputs("cannot start the engine: out of memory\n", stderr);
    exit(71);
  }
  JS_SetGCThreshold(rt, (size_t)-1); /* cycles live as long as the process: milliseconds */
  JS_AddIntrinsicBaseObjects(ctx);
  JS_AddIntrinsicJSON(ctx);
  JS_AddIntrinsicMapSet(ctx);
  JS_AddIntrinsicTypedArrays(ctx);
  JS_AddIntrinsicRegExp(ctx);
  terway_bind_sys(ctx);
  terway_bind_sql(ctx);
  JSValue program = JS_ReadObject(ctx, program_start, program_end - program_start, JS_READ_OBJ_BYTECODE);
  if (JS_IsException(program)) exit(report(ctx));
  /* Evaluating frees the program: keep it, a process that ends with it need not take it apart. */
  if (JS_IsException(JS_EvalFunction(ctx, JS_DupValue(ctx, program)))) exit(report(ctx));
  return ctx;
}

/* @param store A store without content, for its schema. */
static int freeze(const char *store) {
  region_next = snapshot_start + HEADER_BYTES;
  region_end = snapshot_end;
  JSContext *ctx = start_engine();
  struct TerwaySchema schema;
  int code = terway_schema_read(store, &schema);
  if (code != SQLITE_OK) {
    fprintf(stderr, "cannot read the schema of %s: %s\n", store, sqlite3_errstr(code));
    return 66; /* EX_NOINPUT */
  }
  *HEADER = (struct Header){
      .bytes = (uint64_t)(region_next - snapshot_start), .runtime = JS_GetRuntime(ctx), .context = ctx, .store_schema = schema};
  memcpy(HEADER->free_lists, free_lists, sizeof free_lists);
  return fwrite(snapshot_start, 1, HEADER->bytes, stdout) == HEADER->bytes && !fflush(stdout) ? 0 : 74; /* EX_IOERR */
}

static size_t page_count(void) { return (HEADER->bytes + PAGE_BYTES - 1) / PAGE_BYTES; }
static int is_touched(size_t page) { return HEADER->touched[page / 8] >> page % 8 & 1; }

/* Copies the pages that a call writes to (counting references is writing) in a few calls instead of a fault each. */
static void populate(void) {
  for (size_t from = 0, to, pages = page_count(); from < pages; from = to + 1) {
    for (to = from; to < pages && is_touched(to); to++) {}
    if (to > from) madvise(snapshot_start + from * PAGE_BYTES, (to - from) * PAGE_BYTES, MADV_POPULATE_WRITE);
  }
}

/* For a rehearsal: as in Header, the pages that are not the file's any more (Documentation/admin-guide/mm/pagemap.rst). */
static int report_touched(int out) {
  uint64_t entries[MAX_PAGES];
  uint8_t touched[MAX_PAGES / 8] = {0};
  size_t bytes = page_count() * sizeof *entries;
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pread(pagemap, entries, bytes, (off_t)((uintptr_t)snapshot_start / PAGE_BYTES * sizeof *entries)) != (ssize_t)bytes) {
    perror("/proc/self/pagemap");
    return 74;
  }
  for (size_t page = 0; page < page_count(); page++)
    if ((entries[page] >> 63 & 1) && !(entries[page] >> 61 & 1)) touched[page / 8] |= (uint8_t)(1 << page % 8);
  return write(out, touched, sizeof touched) == sizeof touched ? 0 : 74;
}

static JSContext *thaw(void) {
  populate();
  memcpy(free_lists, HEADER->free_lists, sizeof free_lists);
  JS_UpdateStackTop(HEADER->runtime);
  terway_known_schema = HEADER->store_schema;
  return HEADER->context;
}

/* Calls what runMain() left; a program that is not frozen may have done everything already. */
static int run_main(JSContext *ctx) {
  JSValue global = JS_GetGlobalObject(ctx), main = JS_GetPropertyStr(ctx, global, "terwayMain");
  if (JS_IsFunction(ctx, main) && JS_IsException(JS_Call(ctx, main, JS_UNDEFINED, 0, NULL))) return report(ctx);
  int32_t code = 70;
  JS_ToInt32(ctx, &code, JS_GetPropertyStr(ctx, global, "terwayExitStatus"));
  return code;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  int frozen = HEADER->bytes != 0;
  sqlite3_config(SQLITE_CONFIG_MALLOC, &sql_allocator);
  if (!frozen && argc == 3 && !strcmp(argv[1], "--freeze")) return freeze(argv[2]);
  reserve_region();
  int code = run_main(frozen ? thaw() : start_engine());
  fflush(stdout);
  if (frozen && argc == 2 && !strcmp(argv[1], "--touched")) code = report_touched(3);
  _exit(code); /* nothing to flush, nothing worth freeing */
}
