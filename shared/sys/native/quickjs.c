/* The QuickJS binding of sys.h: one global object `terwaySys`, and the two text coders that the engine core lacks. */
#include "quickjs_binding.h"

#include <stdlib.h>
#include <string.h>

#include "sys.h"


static int get_buffer(JSContext *ctx, JSValueConst value, SysArg *arg) {
  size_t offset, length, element, total;
  JSValue buffer = JS_GetTypedArrayBuffer(ctx, value, &offset, &length, &element);
  if (JS_IsException(buffer)) return 0;
  uint8_t *bytes = JS_GetArrayBuffer(ctx, &total, buffer);
  JS_FreeValue(ctx, buffer); /* the typed array still holds it */
  if (!bytes && length) return 0;
  arg->b.ptr = bytes + offset;
  arg->b.len = length;
  return 1;
}

static void free_vector(JSContext *ctx, char **v) {
  for (char **s = v; v && *s; s++) JS_FreeCString(ctx, *s);
  js_free(ctx, v);
}

static char **get_vector(JSContext *ctx, JSValueConst value) {
  JSValue length = JS_GetPropertyStr(ctx, value, "length");
  uint32_t n = 0;
  if (JS_ToUint32(ctx, &n, length) || n > 65536) return NULL;
  char **v = js_mallocz(ctx, ((size_t)n + 1) * sizeof *v);
  for (uint32_t i = 0; v && i < n; i++) {
    JSValue item = JS_GetPropertyUint32(ctx, value, i);
    v[i] = (char *)JS_ToCString(ctx, item);
    JS_FreeValue(ctx, item);
    if (!v[i]) {
      free_vector(ctx, v);
      return NULL;
    }
  }
  return v;
}

/* A string with a NUL inside would silently name something else. */
static const char *get_string(JSContext *ctx, JSValueConst value) {
  size_t len;
  const char *s = JS_ToCStringLen(ctx, &len, value);
  if (s && strlen(s) != len) {
    JS_FreeCString(ctx, s);
    return NULL;
  }
  return s;
}

static JSValue call(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv, int index) {
  (void)self;
  const SysFunction *f = &sys_functions[index];
  int want = (int)strlen(f->signature), got = 0, good = argc >= want;
  SysArg arg[SYS_MAX_ARGS];
  memset(arg, 0, sizeof arg);
  for (; good && got < want; got++) {
    switch (f->signature[got]) {
      case 'i': good = JS_ToInt32(ctx, &arg[got].i, argv[got]) == 0; break;
      case 'd': good = JS_ToFloat64(ctx, &arg[got].d, argv[got]) == 0; break;
      case 's': good = (arg[got].s = get_string(ctx, argv[got])) != NULL; break;
      case 'v': good = (arg[got].v = get_vector(ctx, argv[got])) != NULL; break;
      case 'b': good = get_buffer(ctx, argv[got], &arg[got]); break;
      default: good = 0;
    }
    if (!good) break;
  }
  JSValue out = good ? JS_NewFloat64(ctx, f->call(arg)) : JS_ThrowTypeError(ctx, __FILE__, __LINE__, "%s", f->name);
  for (int i = 0; i < got; i++) {
    if (f->signature[i] == 's') JS_FreeCString(ctx, arg[i].s);
    if (f->signature[i] == 'v') free_vector(ctx, arg[i].v);
  }
  return out;
}

/* ---- TextEncoder, TextDecoder: UTF-8 only ---- */

static JSValue encode(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self;
  size_t len;
  const char *s = JS_ToCStringLen(ctx, &len, argc ? argv[0] : JS_UNDEFINED);
  if (!s) return JS_EXCEPTION;
  JSValue buffer = JS_NewArrayBufferCopy(ctx, (const uint8_t *)s, len);
  JS_FreeCString(ctx, s);
  JSValueConst args[3] = {buffer, JS_UNDEFINED, JS_UNDEFINED};
  JSValue out = JS_NewTypedArray(ctx, 1, args, JS_TYPED_ARRAY_UINT8);
  JS_FreeValue(ctx, buffer);
  return out;
}

static JSValue decode(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self;
  SysArg arg;
  if (!argc || !get_buffer(ctx, argv[0], &arg)) return JS_NewString(ctx, "");
  return JS_NewStringLen(ctx, (const char *)arg.b.ptr, arg.b.len);
}

static JSValue make_coder(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv, int decoder) {
  (void)self, (void)argc, (void)argv;
  JSValue coder = JS_NewObject(ctx);
  const char *name = decoder ? "decode" : "encode";
  JS_SetPropertyStr(ctx, coder, name, JS_NewCFunction(ctx, decoder ? decode : encode, name, 1));
  return coder;
}

void terway_bind_sys(JSContext *ctx) {
  JSValue global = JS_GetGlobalObject(ctx), table = JS_NewObject(ctx);
  for (size_t i = 0; i < sys_function_count; i++) {
    const SysFunction *f = &sys_functions[i];
    JS_SetPropertyStr(ctx, table, f->name,
                      JS_NewCFunctionMagic(ctx, call, f->name, (int)strlen(f->signature), JS_CFUNC_generic_magic, (int)i));
  }
  JS_SetPropertyStr(ctx, global, "terwaySys", table);
  JS_SetPropertyStr(ctx, global, "TextEncoder",
                    JS_NewCFunctionMagic(ctx, make_coder, "TextEncoder", 0, JS_CFUNC_constructor_or_func_magic, 0));
  JS_SetPropertyStr(ctx, global, "TextDecoder",
                    JS_NewCFunctionMagic(ctx, make_coder, "TextDecoder", 0, JS_CFUNC_constructor_or_func_magic, 1));
  JS_FreeValue(ctx, global);
}
