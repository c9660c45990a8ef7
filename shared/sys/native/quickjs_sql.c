/*
 * SQLite for the plugins: open, query, close. A failing call throws an Error with a `code` (SQLite's extended
 * result code). The database handle is a number: an index into a small table.
 */
#include "quickjs_binding.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sqlite_schema.h"

#define MAX_DATABASES 4
#define MAX_STATEMENTS 64
/* A checkpoint at this many frames: recovery of the WAL, when nobody has the database open, stays below 1 ms. */
#define CHECKPOINT_FRAMES 512

/* Of the store; main.c sets it. */
struct TerwaySchema terway_known_schema;

static sqlite3 *databases[MAX_DATABASES];
static int schema_known[MAX_DATABASES];
/* Statements by their text: a plugin runs most of them once, but a loop should not pay for preparing them again. */
static struct { sqlite3_stmt *statement; uint32_t hash; } statements[MAX_DATABASES][MAX_STATEMENTS];

static JSValue fail(JSContext *ctx, int code, const char *message) {
  JSValue error = JS_NewError(ctx);
  JS_SetPropertyStr(ctx, error, "message", JS_NewString(ctx, message));
  JS_SetPropertyStr(ctx, error, "code", JS_NewInt32(ctx, code));
  return JS_Throw(ctx, error);
}

static JSValue fail_db(JSContext *ctx, sqlite3 *db) {
  return fail(ctx, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
}

static sqlite3 *get_db(JSContext *ctx, JSValueConst value) {
  int32_t i;
  if (JS_ToInt32(ctx, &i, value) || i < 0 || i >= MAX_DATABASES || !databases[i]) {
    fail(ctx, SQLITE_MISUSE, "the database is not open");
    return NULL;
  }
  return databases[i];
}

/*
 * Waits for another writer: a transaction of ours lasts some 0.2 ms, so short naps, 5 s in all. SQLite's own handler
 * sleeps up to 100 ms at a time, which is what one unlucky pod of a burst would then wait for nothing.
 */
static int on_busy(void *opaque, int count) {
  (void)opaque;
  static struct timespec since;
  struct timespec now, nap = {0, count < 20 ? 100000 : 1000000};
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (count == 0) since = now;
  if (now.tv_sec - since.tv_sec > 5) return 0;
  nanosleep(&nap, NULL);
  return 1;
}

/*
 * Runs after a commit, without any lock. The passive checkpoint that SQLite would do here leaves the WAL as long as it
 * is: unless somebody keeps the database open, the next one reads all of it again, and copies all of it again. So the
 * WAL is emptied, if that can be done without waiting for anyone.
 */
static int on_commit(void *opaque, sqlite3 *db, const char *schema, int frames) {
  (void)opaque;
  if (frames < CHECKPOINT_FRAMES) return SQLITE_OK;
  sqlite3_busy_handler(db, NULL, NULL);
  sqlite3_wal_checkpoint_v2(db, schema, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  sqlite3_busy_handler(db, on_busy, NULL);
  return SQLITE_OK; /* the commit stands, whatever became of this */
}

/* As root, SQLite gives each file that it opens to the owner of the database, who is root: a write of every inode. */
static uid_t nobody(void) { return 65534; }
static void leave_owners(void) {
  sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
  vfs->xSetSystemCall(vfs, "geteuid", (sqlite3_syscall_ptr)nobody);
}

static JSValue sql_open(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  int i = 0;
  while (i < MAX_DATABASES && databases[i]) i++;
  if (i == MAX_DATABASES) return fail(ctx, SQLITE_NOMEM, "too many open databases");
  const char *path = JS_ToCString(ctx, argv[0]);
  if (!path) return JS_EXCEPTION;
  leave_owners();
  int code = sqlite3_open_v2(path, &databases[i], SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
  JS_FreeCString(ctx, path);
  if (code != SQLITE_OK) {
    JSValue error = fail(ctx, sqlite3_extended_errcode(databases[i]), sqlite3_errmsg(databases[i]));
    sqlite3_close_v2(databases[i]);
    databases[i] = NULL;
    return error;
  }
  sqlite3_extended_result_codes(databases[i], 1);
  schema_known[i] = terway_schema_give(databases[i], &terway_known_schema); /* first: it waits for nobody */
  sqlite3_busy_handler(databases[i], on_busy, NULL);
  sqlite3_wal_hook(databases[i], on_commit, NULL);
  /* A plugin lives for milliseconds: leave checkpoints (fsync) at close to those who have the time. */
  sqlite3_db_config(databases[i], SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
  /* Plans do not depend on parameters: a cached statement is not planned anew for every run. */
  sqlite3_db_config(databases[i], SQLITE_DBCONFIG_ENABLE_QPSG, 1, NULL);
  return JS_NewInt32(ctx, i);
}

static JSValue sql_close(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  int32_t i;
  if (!get_db(ctx, argv[0])) return JS_EXCEPTION;
  JS_ToInt32(ctx, &i, argv[0]);
  for (int n = 0; n < MAX_STATEMENTS; n++) sqlite3_finalize(statements[i][n].statement);
  memset(statements[i], 0, sizeof statements[i]);
  sqlite3_close_v2(databases[i]);
  databases[i] = NULL;
  return JS_UNDEFINED;
}

static int bind(JSContext *ctx, sqlite3_stmt *statement, JSValueConst params) {
  int n = sqlite3_bind_parameter_count(statement);
  for (int i = 0; i < n; i++) {
    JSValue value = JS_GetPropertyUint32(ctx, params, (uint32_t)i);
    int code = SQLITE_MISUSE;
    if (JS_IsNull(value)) {
      code = sqlite3_bind_null(statement, i + 1);
    } else if (JS_IsNumber(value)) {
      double d;
      JS_ToFloat64(ctx, &d, value);
      code = d == (double)(int64_t)d ? sqlite3_bind_int64(statement, i + 1, (int64_t)d) : sqlite3_bind_double(statement, i + 1, d);
    } else if (JS_IsString(value)) {
      size_t len;
      const char *s = JS_ToCStringLen(ctx, &len, value);
      code = s ? sqlite3_bind_text(statement, i + 1, s, (int)len, SQLITE_TRANSIENT) : SQLITE_NOMEM;
      JS_FreeCString(ctx, s);
    } else if (JS_IsObject(value)) {
      size_t offset, length, element, total;
      JSValue buffer = JS_GetTypedArrayBuffer(ctx, value, &offset, &length, &element);
      uint8_t *bytes = JS_IsException(buffer) ? NULL : JS_GetArrayBuffer(ctx, &total, buffer);
      if (bytes) code = sqlite3_bind_blob(statement, i + 1, bytes + offset, (int)length, SQLITE_TRANSIENT);
      JS_FreeValue(ctx, buffer);
    }
    JS_FreeValue(ctx, value);
    if (code != SQLITE_OK) return code;
  }
  return SQLITE_OK;
}

static JSValue column(JSContext *ctx, sqlite3_stmt *statement, int i) {
  switch (sqlite3_column_type(statement, i)) {
    case SQLITE_INTEGER: return JS_NewFloat64(ctx, (double)sqlite3_column_int64(statement, i));
    case SQLITE_FLOAT: return JS_NewFloat64(ctx, sqlite3_column_double(statement, i));
    case SQLITE_TEXT: {
      const char *text = (const char *)sqlite3_column_text(statement, i);
      return JS_NewStringLen(ctx, text, (size_t)sqlite3_column_bytes(statement, i));
    }
    case SQLITE_BLOB: {
      const void *bytes = sqlite3_column_blob(statement, i);
      JSValue buffer = JS_NewArrayBufferCopy(ctx, bytes, (size_t)sqlite3_column_bytes(statement, i));
      JSValueConst args[3] = {buffer, JS_UNDEFINED, JS_UNDEFINED};
      JSValue out = JS_NewTypedArray(ctx, 1, args, JS_TYPED_ARRAY_UINT8);
      JS_FreeValue(ctx, buffer);
      return out;
    }
    default: return JS_NULL;
  }
}

/*
 * The statement for this text, prepared or from the cache; `*cached` tells whether to reset or to finalize it. NULL with
 * SQLITE_OK for an empty text.
 */
static sqlite3_stmt *prepare(sqlite3 *db, const char *sql, size_t len, int *cached, int *code) {
  int d = 0, free_slot = -1;
  while (databases[d] != db) d++;
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < len; i++) hash = (hash ^ (uint8_t)sql[i]) * 16777619u;
  *cached = 1;
  *code = SQLITE_OK;
  for (int n = 0; n < MAX_STATEMENTS; n++) {
    sqlite3_stmt *statement = statements[d][n].statement;
    if (!statement) {
      free_slot = n;
      break;
    }
    if (statements[d][n].hash == hash && strcmp(sqlite3_sql(statement), sql) == 0) return statement;
  }
  sqlite3_stmt *statement = NULL;
  *code = sqlite3_prepare_v3(db, sql, (int)len + 1, SQLITE_PREPARE_PERSISTENT, &statement, NULL);
  if (statement && free_slot >= 0) {
    statements[d][free_slot].statement = statement;
    statements[d][free_slot].hash = hash;
  } else {
    *cached = 0;
  }
  return statement;
}

static void release(sqlite3_stmt *statement, int cached) {
  if (!cached) {
    sqlite3_finalize(statement);
    return;
  }
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
}

/* query(db, sql, params): runs one statement to its end; its rows as an array of objects. */
static JSValue sql_query(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  sqlite3 *db = get_db(ctx, argv[0]);
  if (!db) return JS_EXCEPTION;
  size_t len;
  const char *sql = JS_ToCStringLen(ctx, &len, argv[1]);
  if (!sql) return JS_EXCEPTION;
  int cached, code;
  sqlite3_stmt *statement = prepare(db, sql, len, &cached, &code);
  JS_FreeCString(ctx, sql);
  if (code != SQLITE_OK) return fail_db(ctx, db);
  if (!statement) return JS_NewArray(ctx);
  code = bind(ctx, statement, argv[2]);
  if (code != SQLITE_OK) {
    release(statement, cached);
    return fail(ctx, code, "a parameter is missing or of a type that SQLite cannot store");
  }
  JSValue rows = JS_NewArray(ctx);
  uint32_t count = 0;
  int columns = sqlite3_column_count(statement);
  while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
    JSValue row = JS_NewObject(ctx);
    for (int i = 0; i < columns; i++)
      JS_SetPropertyStr(ctx, row, sqlite3_column_name(statement, i), column(ctx, statement, i));
    JS_SetPropertyUint32(ctx, rows, count++, row);
  }
  if (code != SQLITE_DONE) {
    JS_FreeValue(ctx, rows);
    JSValue error = fail_db(ctx, db);
    release(statement, cached);
    return error;
  }
  release(statement, cached);
  return rows;
}

/* exec(db, sql): any number of statements, whose rows nobody wants. */
static JSValue sql_exec(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  sqlite3 *db = get_db(ctx, argv[0]);
  if (!db) return JS_EXCEPTION;
  const char *sql = JS_ToCString(ctx, argv[1]);
  if (!sql) return JS_EXCEPTION;
  int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  JS_FreeCString(ctx, sql);
  return code == SQLITE_OK ? JS_UNDEFINED : fail_db(ctx, db);
}

static JSValue sql_changes(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  sqlite3 *db = get_db(ctx, argv[0]);
  return db ? JS_NewInt32(ctx, sqlite3_changes(db)) : JS_EXCEPTION;
}

/* Whether the database has the schema that was known since the build. */
static JSValue sql_schema_known(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
  (void)self, (void)argc;
  int32_t i;
  if (!get_db(ctx, argv[0])) return JS_EXCEPTION;
  JS_ToInt32(ctx, &i, argv[0]);
  return JS_NewBool(ctx, schema_known[i]);
}

void terway_bind_sql(JSContext *ctx) {
  JSValue global = JS_GetGlobalObject(ctx), table = JS_NewObject(ctx);
  JS_SetPropertyStr(ctx, table, "open", JS_NewCFunction(ctx, sql_open, "open", 1));
  JS_SetPropertyStr(ctx, table, "close", JS_NewCFunction(ctx, sql_close, "close", 1));
  JS_SetPropertyStr(ctx, table, "query", JS_NewCFunction(ctx, sql_query, "query", 3));
  JS_SetPropertyStr(ctx, table, "exec", JS_NewCFunction(ctx, sql_exec, "exec", 2));
  JS_SetPropertyStr(ctx, table, "schemaKnown", JS_NewCFunction(ctx, sql_schema_known, "schemaKnown", 1));
  JS_SetPropertyStr(ctx, table, "changes", JS_NewCFunction(ctx, sql_changes, "changes", 1));
  JS_SetPropertyStr(ctx, global, "terwaySql", table);
  JS_FreeValue(ctx, global);
}
