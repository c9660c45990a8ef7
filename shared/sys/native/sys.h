/*
 * The syscall wrappers that both engines bind. One table, two bindings: quickjs.c (plugins) and napi.c (Node).
 *
 * Every wrapper takes its arguments already converted and returns a number: the syscall's result, or -errno.
 * A double holds every int64 that these calls can return (file sizes, milliseconds) exactly.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef union {
  int32_t i;                                      /* 'i' */
  double d;                                       /* 'd' */
  const char *s;                                  /* 's': no NUL inside, NUL at the end */
  char **v;                                       /* 'v': vector of strings, NULL at the end */
  struct { uint8_t *ptr; size_t len; } b;         /* 'b': the bytes of a Uint8Array or Int32Array, in place */
} SysArg;

#define SYS_MAX_ARGS 8

typedef struct {
  const char *name;
  const char *signature; /* one letter per argument, as in SysArg */
  double (*call)(SysArg *arg);
} SysFunction;

extern const SysFunction sys_functions[];
extern const size_t sys_function_count;
