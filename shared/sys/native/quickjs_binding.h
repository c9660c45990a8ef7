#pragma once
#include "quickjs.h"

/* Defines the globals `terwaySys`, `TextEncoder` and `TextDecoder`. */
void terway_bind_sys(JSContext *ctx);

/* Defines the global `terwaySql`. */
void terway_bind_sql(JSContext *ctx);
