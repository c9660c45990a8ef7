#pragma once
#include "quickjs.h"
#include "sqlite_schema.h"

/* Defines the globals `terwaySys`, `TextEncoder` and `TextDecoder`. */
void terway_bind_sys(JSContext *ctx);

/* Defines the global `terwaySql`. */
void terway_bind_sql(JSContext *ctx);

/* What the first database that is opened gets, if it is that one's. */
extern struct TerwaySchema terway_known_schema;
