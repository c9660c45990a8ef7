#pragma once
#include <stdint.h>

#include "sqlite3.h"

/* A schema that was read before. */
struct TerwaySchema {
  void *schema; /* NULL: none */
  /* Of the file it was read from. SQLite counts changes of the schema in the one (and reads it anew when it differs); */
  uint32_t cookie;
  /* the other tells on which pages it lies (layoutOf() in ipam/store/migrate.ts); 0: not known. */
  uint32_t layout;
};

/* Reads the schema of the database, which stays in memory. Returns SQLite's result code. */
int terway_schema_read(const char *path, struct TerwaySchema *out);

/*
 * Gives a connection that was just opened the schema, if it is its file's: then SQLite does not read it. Can be given once.
 * Returns whether it was.
 */
int terway_schema_give(sqlite3 *db, struct TerwaySchema *known);
