/*
 * SQLite, and two functions that its interface does not have. Reading the schema, a text for each table, is a third of
 * what opening the store takes a plugin. All stores that were made by the same migrations have the same schema on the same
 * pages: so it is read when the executable is built, and lies in its snapshot.
 */
#include "sqlite3.c"

#include "sqlite_schema.h"

#if SQLITE_VERSION_NUMBER / 1000 != 3054
#error "written to SQLite 3.54: compare sqlite3InitOne() and struct Schema, then change this line"
#endif

static struct TerwaySchema identity(Btree *file) {
  struct TerwaySchema is = {0};
  sqlite3BtreeGetMeta(file, BTREE_SCHEMA_VERSION, &is.cookie);
  sqlite3BtreeGetMeta(file, BTREE_APPLICATION_ID, &is.layout);
  return is;
}

int terway_schema_read(const char *path, struct TerwaySchema *out) {
  sqlite3 *db = NULL;
  int code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
  if (code == SQLITE_OK) code = sqlite3_exec(db, "BEGIN; SELECT 1 FROM sqlite_schema", NULL, NULL, NULL);
  if (code == SQLITE_OK) {
    Btree *file = db->aDb[0].pBt;
    *out = identity(file);
    out->schema = db->aDb[0].pSchema;
    db->aDb[0].pSchema = file->pBt->pSchema = NULL; /* or closing would free it */
  }
  sqlite3_close(db);
  return code;
}

int terway_schema_give(sqlite3 *db, struct TerwaySchema *known) {
  Btree *file = db->aDb[0].pBt;
  if (known->schema == NULL || sqlite3BtreeBeginTrans(file, 0, NULL) != SQLITE_OK) return 0;
  struct TerwaySchema found = identity(file);
  int same = found.layout != 0 && found.layout == known->layout && found.cookie == known->cookie;
  if (same) {
    Schema *empty = db->aDb[0].pSchema;
    db->aDb[0].pSchema = file->pBt->pSchema = known->schema;
    known->schema = NULL; /* one connection's */
    sqlite3_free(empty);
    sqlite3BtreeSetCacheSize(file, db->aDb[0].pSchema->cache_size);
  }
  sqlite3BtreeCommit(file);
  return same;
}
