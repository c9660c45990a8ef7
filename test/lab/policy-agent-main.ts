/** The agent's policy part alone, on a store and a folder, until its standard input ends. Logs JSON lines on stdout. */
import { parseArgs } from "node:util";
import { openManifests } from "../../ipam/agent/manifests.ts";
import { startPolicy } from "../../ipam/agent/policy.ts";
import { openStore } from "../../ipam/store/open.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";

const { values } = parseArgs({
  options: {
    store: { type: "string", default: "" },
    dir: { type: "string" },
    "cut-established": { type: "boolean", default: false },
    "log-drops": { type: "boolean", default: false },
  },
});
const store = openStore({ sys: nodeSys, openSql: openNodeSql }, values.store);
const log = (level: string, msg: string) => void process.stdout.write(`${JSON.stringify({ level, msg })}\n`);
const manifests = values.dir === undefined ? undefined : openManifests({ log }, values.dir);
const policy = startPolicy(
  { store, log },
  {
    manifests,
    nodeName: "here",
    eniTags: {},
    cutEstablished: values["cut-established"],
    logDrops: values["log-drops"],
  },
);
manifests?.start();
log("info", "started");
process.stdin.resume();
process.stdin.on("end", () => {
  manifests?.stop();
  policy.stop();
  store.db.close();
});
