/*
 * The executable around one plugin: starts the engine with only the intrinsics that the plugins use, runs the
 * plugin's bytecode (compiled in by build.ts), and exits with the status it left in `terwayExitStatus`.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quickjs.h"
#include "quickjs_binding.h"
#include "sqlite3.h"

extern const uint8_t plugin_bytecode[];
extern const uint32_t plugin_bytecode_size;

/*
 * The engine's memory: power-of-two-ish size classes carved from one reserved region, recycled through free lists,
 * never given back: the process lives for milliseconds, and the C library's allocator cost a tenth of its life.
 * A header of 8 bytes before each block holds its size class, so blocks are 16-byte aligned from offset 8.
 */
#define REGION_BYTES ((size_t)1 << 30) /* reserved address space, not memory */
#define CLASSES 112
#define POPULATE_BYTES ((size_t)640 << 10) /* what a call of ADD or DEL touches */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* include/uapi/asm-generic/mman-common.h */
#endif

static uint8_t *region_next, *region_end;
static struct FreeBlock { struct FreeBlock *next; } *free_lists[CLASSES];

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

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  region_next = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region_next == MAP_FAILED) {
    fputs("cannot reserve memory for the engine\n", stderr);
    return 71;
  }
  region_end = region_next + REGION_BYTES;
  madvise(region_next, POPULATE_BYTES, MADV_POPULATE_WRITE); /* Linux 5.14; elsewhere pages come one fault at a time */
  sqlite3_config(SQLITE_CONFIG_MALLOC, &sql_allocator);
  JSRuntime *rt = JS_NewRuntime2(&host_allocator, NULL);
  JSContext *ctx = rt ? JS_NewContextRaw(rt) : NULL;
  if (!ctx) {
    fputs("cannot start the engine: out of memory\n", stderr);
    return 71;
  }
  JS_SetGCThreshold(rt, (size_t)-1); /* cycles live as long as the process: milliseconds */
  JS_AddIntrinsicBaseObjects(ctx);
  JS_AddIntrinsicJSON(ctx);
  JS_AddIntrinsicMapSet(ctx);
  JS_AddIntrinsicTypedArrays(ctx);
  JS_AddIntrinsicRegExp(ctx);
  terway_bind_sys(ctx);
  terway_bind_sql(ctx);
  JSValue program = JS_ReadObject(ctx, plugin_bytecode, plugin_bytecode_size, JS_READ_OBJ_BYTECODE);
  if (JS_IsException(program)) return report(ctx);
  /* Evaluating frees the program: keep it, a process that ends with it need not take it apart. */
  JSValue value = JS_EvalFunction(ctx, JS_DupValue(ctx, program));
  if (JS_IsException(value)) return report(ctx);
  JSValue global = JS_GetGlobalObject(ctx), status = JS_GetPropertyStr(ctx, global, "terwayExitStatus");
  int32_t code = 70;
  JS_ToInt32(ctx, &code, status);
  fflush(stdout);
  _exit(code); /* nothing to flush, nothing worth freeing */
}
