/* The N-API binding of sys.h, for the agent, the CLI and the tests. Also watches descriptors on Node's own loop. */
#include "sys.h"

#include <node_api.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

static char *get_string(napi_env env, napi_value value) {
  size_t len;
  if (napi_get_value_string_utf8(env, value, NULL, 0, &len) != napi_ok) return NULL;
  char *s = malloc(len + 1);
  if (s) napi_get_value_string_utf8(env, value, s, len + 1, &len);
  if (s && strlen(s) != len) { /* a NUL inside would silently name something else */
    free(s);
    return NULL;
  }
  return s;
}

static void free_vector(char **v) {
  for (char **s = v; v && *s; s++) free(*s);
  free(v);
}

static char **get_vector(napi_env env, napi_value value) {
  uint32_t n;
  if (napi_get_array_length(env, value, &n) != napi_ok) return NULL;
  char **v = calloc((size_t)n + 1, sizeof *v);
  for (uint32_t i = 0; v && i < n; i++) {
    napi_value item;
    if (napi_get_element(env, value, i, &item) != napi_ok || !(v[i] = get_string(env, item))) {
      free_vector(v);
      return NULL;
    }
  }
  return v;
}

static size_t element_size(napi_typedarray_type type) {
  switch (type) {
    case napi_uint8_array: return 1;
    case napi_int32_array: return 4;
    case napi_float64_array: return 8;
    default: return 0;
  }
}

static int get_buffer(napi_env env, napi_value value, SysArg *arg) {
  napi_typedarray_type type;
  size_t length;
  void *data;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, NULL, NULL) != napi_ok) return 0;
  size_t size = element_size(type);
  arg->b.ptr = data;
  arg->b.len = length * size;
  return size != 0;
}

static napi_value call(napi_env env, napi_callback_info info) {
  napi_value argv[SYS_MAX_ARGS], out = NULL;
  size_t argc = SYS_MAX_ARGS;
  void *data;
  napi_get_cb_info(env, info, &argc, argv, NULL, &data);
  const SysFunction *f = data;
  size_t want = strlen(f->signature), got = 0;
  SysArg arg[SYS_MAX_ARGS];
  memset(arg, 0, sizeof arg);
  int good = argc >= want;
  for (; good && got < want; got++) {
    switch (f->signature[got]) {
      case 'i': good = napi_get_value_int32(env, argv[got], &arg[got].i) == napi_ok; break;
      case 'd': good = napi_get_value_double(env, argv[got], &arg[got].d) == napi_ok; break;
      case 's': good = (arg[got].s = get_string(env, argv[got])) != NULL; break;
      case 'v': good = (arg[got].v = get_vector(env, argv[got])) != NULL; break;
      case 'b': good = get_buffer(env, argv[got], &arg[got]); break;
      default: good = 0;
    }
    if (!good) break;
  }
  if (good) napi_create_double(env, f->call(arg), &out);
  else napi_throw_type_error(env, NULL, f->name);
  for (size_t i = 0; i < got; i++) {
    if (f->signature[i] == 's') free((char *)arg[i].s);
    if (f->signature[i] == 'v') free_vector(arg[i].v);
  }
  return out;
}

/* ---- watch(fd, callback): callback() whenever fd is readable, until unwatch ---- */

typedef struct {
  uv_poll_t poll;
  napi_env env;
  napi_ref callback;
  napi_async_context async;
} Watch;

static void on_readable(uv_poll_t *handle, int status, int events) {
  (void)status;
  (void)events;
  Watch *w = handle->data;
  napi_handle_scope scope;
  napi_value callback, global, ignored, error;
  napi_open_handle_scope(w->env, &scope);
  napi_get_reference_value(w->env, w->callback, &callback);
  napi_get_global(w->env, &global);
  if (napi_make_callback(w->env, w->async, global, callback, 0, NULL, &ignored) == napi_pending_exception) {
    napi_get_and_clear_last_exception(w->env, &error);
    napi_fatal_exception(w->env, error);
  }
  napi_close_handle_scope(w->env, scope);
}

static void on_closed(uv_handle_t *handle) {
  Watch *w = handle->data;
  napi_delete_reference(w->env, w->callback);
  napi_async_destroy(w->env, w->async);
  free(w);
}

static napi_value stop(napi_env env, napi_callback_info info) {
  void *data;
  size_t argc = 0;
  napi_get_cb_info(env, info, &argc, NULL, NULL, &data);
  Watch *w = data;
  if (!uv_is_closing((uv_handle_t *)&w->poll)) uv_close((uv_handle_t *)&w->poll, on_closed);
  return NULL;
}

/* watch(fd, callback) returns a function that stops it; call that once, before closing the descriptor. */
static napi_value watch(napi_env env, napi_callback_info info) {
  napi_value argv[2], name, out = NULL;
  size_t argc = 2;
  int32_t fd;
  uv_loop_t *loop;
  napi_get_cb_info(env, info, &argc, argv, NULL, NULL);
  if (argc < 2 || napi_get_value_int32(env, argv[0], &fd) != napi_ok) {
    napi_throw_type_error(env, NULL, "watch(fd, callback)");
    return NULL;
  }
  Watch *w = calloc(1, sizeof *w);
  napi_get_uv_event_loop(env, &loop);
  if (!w || uv_poll_init(loop, &w->poll, fd) != 0) {
    free(w);
    napi_throw_error(env, NULL, "watch: this descriptor cannot be polled");
    return NULL;
  }
  w->env = env;
  w->poll.data = w;
  napi_create_reference(env, argv[1], 1, &w->callback);
  napi_create_string_utf8(env, "terway:watch", NAPI_AUTO_LENGTH, &name);
  napi_async_init(env, NULL, name, &w->async);
  uv_poll_start(&w->poll, UV_READABLE, on_readable);
  napi_create_function(env, "stop", NAPI_AUTO_LENGTH, stop, w, &out);
  return out;
}

NAPI_MODULE_INIT() {
  for (size_t i = 0; i < sys_function_count; i++) {
    napi_value f;
    napi_create_function(env, sys_functions[i].name, NAPI_AUTO_LENGTH, call, (void *)&sys_functions[i], &f);
    napi_set_named_property(env, exports, sys_functions[i].name, f);
  }
  napi_value f;
  napi_create_function(env, "watch", NAPI_AUTO_LENGTH, watch, NULL, &f);
  napi_set_named_property(env, exports, "watch", f);
  return exports;
}
