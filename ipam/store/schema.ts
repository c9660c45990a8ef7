/**
 * The store's schema: a list of migrations, each applied once, in order. `PRAGMA user_version` counts them.
 *
 * Deadlines and cool-downs are milliseconds of CLOCK_BOOTTIME (`…_ms`), which no step of the wall clock moves; columns
 * named `at` are wall clock milliseconds, for people only.
 */
export interface Migration {
  readonly sql: string;
  /**
   * The oldest schema whose programs can still work with the store after this step. A step that only adds columns or
   * tables repeats the number of the step before: plugins of the version before keep working during an upgrade. They
   * name the columns that they write, and ignore those that they do not know.
   */
  readonly minReader: number;
}

export const MIGRATIONS: readonly Migration[] = [
  {
    minReader: 1,
    sql: `
CREATE TABLE fact(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE eni(
  id TEXT PRIMARY KEY,
  mac TEXT NOT NULL UNIQUE,
  -- What choosing looks at comes first: the rest of a long row may lie on another page.
  kind TEXT NOT NULL CHECK(kind IN ('primary','shared','exclusive','trunk','member')),
  -- ready: addresses may be handed out. draining: none is handed out any more. lost: gone from the cloud, pods may remain.
  state TEXT NOT NULL CHECK(state IN ('attaching','ready','draining','detaching','deleting','lost')),
  -- Policy routing table of the ENI: ROUTE_TABLE_BASE + route_slot.
  route_slot INTEGER NOT NULL UNIQUE,
  vswitch_id TEXT NOT NULL DEFAULT '',
  security_groups TEXT NOT NULL DEFAULT '[]',  -- JSON list, sorted
  primary4 TEXT, cidr4 TEXT, gateway4 TEXT,
  primary6 TEXT, cidr6 TEXT, gateway6 TEXT,
  trunk_id TEXT, vlan_id INTEGER,
  ifname TEXT, ifindex INTEGER, mtu INTEGER NOT NULL DEFAULT 1500,
  -- Boot id in which links, routes and rules of this ENI were set up on the node.
  prepared_boot TEXT,
  idle_since_ms REAL, created_ms REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE address(
  pool TEXT NOT NULL,          -- 'eni', or 'local:' and the network's name
  address TEXT NOT NULL,       -- canonical text
  family INTEGER NOT NULL CHECK(family IN (4,6)),
  eni_id TEXT REFERENCES eni(id),
  state TEXT NOT NULL CHECK(state IN ('idle','allocated','reserved','releasing')),
  network TEXT, container_id TEXT, ifname TEXT, slot INTEGER,
  -- Idle, but not handed out before this moment: connections of the former owner may still be remembered elsewhere.
  cool_until_ms REAL NOT NULL DEFAULT 0,
  since_ms REAL NOT NULL DEFAULT 0,
  PRIMARY KEY(pool, address),
  CHECK((state = 'allocated') = (container_id IS NOT NULL)),
  CHECK((container_id IS NULL) = (network IS NULL) AND (container_id IS NULL) = (ifname IS NULL) AND (container_id IS NULL) = (slot IS NULL))
) WITHOUT ROWID;
CREATE UNIQUE INDEX address_owner ON address(network, container_id, ifname, slot) WHERE container_id IS NOT NULL;
-- The whole of choosing an address: the fullest ENI, and in it the address that is free the longest.
CREATE INDEX address_state ON address(pool, eni_id, state, family, cool_until_ms);

CREATE TABLE range_cursor(pool TEXT NOT NULL, slot INTEGER NOT NULL, last TEXT NOT NULL, PRIMARY KEY(pool, slot)) WITHOUT ROWID;

-- Long rows: with a rowid, four times as much of one lies on its own page.
CREATE TABLE attachment(
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  netns TEXT NOT NULL, netns_dev INTEGER, netns_ino INTEGER,
  pod_namespace TEXT, pod_name TEXT, pod_uid TEXT,
  plugin TEXT NOT NULL, mode TEXT NOT NULL, eni_id TEXT,
  host_ifname TEXT,
  -- What is to be found in the kernel for it, as JSON that the datapath understands.
  datapath TEXT,
  state TEXT NOT NULL CHECK(state IN ('building','ready')),
  created_ms REAL NOT NULL, at REAL NOT NULL,
  PRIMARY KEY(network, container_id, ifname)
);
CREATE UNIQUE INDEX attachment_host ON attachment(host_ifname) WHERE host_ifname IS NOT NULL;
CREATE INDEX attachment_netns ON attachment(netns_ino) WHERE netns_ino IS NOT NULL;

CREATE TABLE reservation(
  pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, pool TEXT NOT NULL, address TEXT NOT NULL,
  expires_ms REAL, reason TEXT NOT NULL DEFAULT '',
  PRIMARY KEY(pool, address)
) WITHOUT ROWID;
CREATE INDEX reservation_pod ON reservation(pod_namespace, pod_name);

CREATE TABLE pod_fact(namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT, facts TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY(namespace, name));

-- NetworkPolicy, compiled. A pod's ADD reads its row of policy_pod; sets and profiles only if the kernel lacks them.
CREATE TABLE policy_pod(namespace TEXT NOT NULL, name TEXT NOT NULL,
  ingress TEXT, egress TEXT,           -- profiles; NULL: all is allowed
  PRIMARY KEY(namespace, name)) WITHOUT ROWID;
CREATE TABLE policy_profile(id TEXT PRIMARY KEY, profile TEXT NOT NULL);  -- JSON
CREATE TABLE policy_set(id TEXT NOT NULL, kind TEXT NOT NULL CHECK(kind IN ('addresses','endpoints')),
  elements TEXT NOT NULL,              -- one a line
  PRIMARY KEY(kind, id));
-- Whose policy holds for an address of this node: the last that was attached with it.
CREATE TABLE policy_address(
  address TEXT PRIMARY KEY,            -- canonical text
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  namespace TEXT NOT NULL, name TEXT NOT NULL,
  posture TEXT NOT NULL CHECK(posture IN ('allow','deny')),  -- while no policy_pod names the pod
  since_ms REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX policy_address_key ON policy_address(network, container_id, ifname);
-- What terway-bandwidth built, for attachments of whichever interface plugin.
CREATE TABLE shaping(
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  netns TEXT NOT NULL, netns_dev INTEGER NOT NULL, netns_ino INTEGER NOT NULL,
  pod_namespace TEXT, pod_name TEXT,
  -- What runtime and conflist asked for, and what was built; JSON that the plugin and the agent understand.
  explicit TEXT NOT NULL, plan TEXT NOT NULL,
  created_ms REAL NOT NULL,
  PRIMARY KEY(network, container_id, ifname)
) WITHOUT ROWID;

CREATE TABLE demand(
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  families TEXT NOT NULL,              -- '4', '6' or '46'
  waiter TEXT NOT NULL,                -- unix datagram name that is told when there is an address
  only_from TEXT,                      -- JSON: the ENIs that will do, if not any
  since_ms REAL NOT NULL, deadline_ms REAL NOT NULL,
  PRIMARY KEY(network, container_id, ifname)
) WITHOUT ROWID;

CREATE TABLE intent(
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, eni_id TEXT, client_token TEXT, payload TEXT NOT NULL,
  step TEXT NOT NULL, since_ms REAL NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE journal(
  id INTEGER PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL, op TEXT NOT NULL,
  network TEXT, container_id TEXT, ifname TEXT, pod TEXT,
  outcome TEXT NOT NULL, code INTEGER, duration_ms REAL, detail TEXT
);
`,
  },
  {
    minReader: 1,
    // Made for pods that ask for its vSwitch or security groups: others get nothing of it.
    sql: "ALTER TABLE eni ADD COLUMN dedicated INTEGER NOT NULL DEFAULT 0;",
  },
];
