/** After a reboot no container of before lives: what they held is free. Reservations stay with their pods. */
import type { SqlHandle } from "../../shared/sys/sql.ts";

/** Inside a transaction. CLOCK_BOOTTIME has started anew, so every deadline of the old boot is void too. */
export function forgetBoot(db: SqlHandle, bootId: string): void {
  const known = db.get("SELECT value FROM fact WHERE name = 'boot_id'")?.value;
  if (known === bootId) return; // another process was first
  if (known !== undefined) {
    db.exec(`
      DELETE FROM address WHERE pool <> 'eni' AND NOT EXISTS
        (SELECT 1 FROM reservation r WHERE r.pool = address.pool AND r.address = address.address);
      UPDATE address SET network = NULL, container_id = NULL, ifname = NULL, slot = NULL, cool_until_ms = 0, since_ms = 0,
        state = CASE WHEN EXISTS (SELECT 1 FROM reservation r WHERE r.pool = address.pool AND r.address = address.address)
                THEN 'reserved' WHEN state = 'releasing' THEN 'releasing' ELSE 'idle' END;
      DELETE FROM attachment;
      DELETE FROM shaping;
      DELETE FROM demand;
      DELETE FROM policy_address;
      UPDATE reservation SET expires_ms = NULL;
      UPDATE eni SET idle_since_ms = NULL, created_ms = 0;
      UPDATE intent SET since_ms = 0;
    `);
  }
  db.run("INSERT INTO fact(name, value) VALUES('boot_id', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value", [
    bootId,
  ]);
}
