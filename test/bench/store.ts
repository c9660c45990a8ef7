/**
 * How fast the store is: address pairs (allocate, free) a second from one process, and what one plugin call pays for
 * opening it, taking one address and closing it. The pool: 10 ENIs with 30 addresses, half of them taken.
 *
 *   node test/bench/store.ts [--json] [--calls 300] [--pairs 5000] [--folder DIR]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { makeEni, putEni, take } from "../../ipam/store/contract/kit.ts";
import { openStore } from "../../ipam/store/open.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { del, pairs } from "./store-work.ts";

const ENIS = 10;
const PER_ENI = 30;

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    calls: { type: "string", default: "300" },
    pairs: { type: "string", default: "5000" },
    folder: { type: "string", default: tmpdir() },
  },
});
const calls = Number(values.calls);
const count = Number(values.pairs);
const folder = mkdtempSync(join(values.folder, "terway-bench-store-"));
const deps = { sys: nodeSys, openSql: openNodeSql };

function newStore(name: string) {
  const path = join(folder, name);
  const store = openStore(deps, path);
  for (let n = 1; n <= ENIS; n++) {
    const eni = makeEni(n, { mac: `00:16:3e:00:00:${(n + 16).toString(16)}` });
    const addresses = Array.from({ length: PER_ENI }, (_, i) => `10.0.${n}.${10 + i}`);
    putEni(store, eni, addresses);
  }
  for (let i = 0; i < (ENIS * PER_ENI) / 2; i++) take(store, `taken${i}`);
  return { store, path };
}

function run(env: Readonly<Record<string, string>>): Record<string, number> {
  const ran = spawnSync(join(folder, "program"), [], { env, encoding: "utf8" });
  if (ran.status !== 0 || ran.stderr !== "") throw new Error(`the program failed: ${ran.stderr}`);
  return ran.stdout === "" ? {} : (JSON.parse(ran.stdout) as Record<string, number>);
}

const round = (n: number, digits = 3) => Number(n.toFixed(digits));

function percentiles(samples: readonly number[]) {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (q: number) => round(sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0);
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99) };
}

/** One process per call, as a runtime does it. */
function latencies(path: string, records: boolean) {
  const samples: Record<string, number>[] = [];
  for (let i = 0; i < calls; i++) {
    const env = { STORE: path, ID: `call${i}`, RECORDS: records ? "yes" : "no" };
    samples.push(run({ ...env, ROLE: "once" }));
    run({ ...env, ROLE: "free" });
  }
  const of = (name: string) => percentiles(samples.map((s) => s[name] ?? Number.NaN));
  return { openMs: of("openMs"), addMs: of("addMs"), openAddCloseMs: of("tookMs") };
}

function main() {
  const entry = ["--entry", "test/bench/store-main.ts", "--out", join(folder, "program")];
  const built = spawnSync(process.execPath, ["plugins/host/build.ts", ...entry], { encoding: "utf8" });
  if (built.status !== 0) throw new Error(`the program could not be built: ${built.stderr}`);

  const perSecond = (ms: number) => Math.round((1000 * count) / ms);
  const node = newStore("node.db");
  pairs(nodeSys, node.store, 500, true); // compile first
  const nodePairs = perSecond(pairs(nodeSys, node.store, count, false));
  const nodeRecords = perSecond(pairs(nodeSys, node.store, count, true));
  node.store.db.close();

  const engine = newStore("engine.db");
  const env = { STORE: engine.path, COUNT: String(count) };
  const enginePairs = perSecond(run({ ...env, ROLE: "pairs" }).tookMs ?? 0);
  const engineRecords = perSecond(run({ ...env, ROLE: "records" }).tookMs ?? 0);
  engine.store.db.close();

  const latency = newStore("latency.db");
  const held = latencies(latency.path, false);
  const heldRecords = latencies(latency.path, true);
  latency.store.db.close();
  const alone = latencies(latency.path, false);
  const aloneRecords = latencies(latency.path, true);
  del(nodeSys, openStore(deps, latency.path), "none", false);

  return {
    pool: { enis: ENIS, addresses: ENIS * PER_ENI, taken: (ENIS * PER_ENI) / 2 },
    pairsPerSecond: { node: nodePairs, quickjs: enginePairs },
    pairsWithRecordsPerSecond: { node: nodeRecords, quickjs: engineRecords },
    oneCall: { heldOpenByAnother: held, heldByNobody: alone },
    oneCallWithRecords: { heldOpenByAnother: heldRecords, heldByNobody: aloneRecords },
  };
}

try {
  const report = main();
  if (values.json) console.log(JSON.stringify(report));
  else console.dir(report, { depth: null });
} finally {
  rmSync(folder, { recursive: true, force: true });
}
