/** Runs the store's contract inside the plugins' engine: CONTRACT_FOLDER names an empty folder; prints a line per case. */
import { openQuickjsSql, setExitStatus, quickjsSys as sys } from "../../../shared/sys/quickjs.ts";
import { encodeUtf8 } from "../../../shared/sys/sys.ts";
import { openStore } from "../open.ts";
import { CASES } from "./cases.ts";

const folder = sys.environ().CONTRACT_FOLDER ?? "";
const deps = { sys, openSql: openQuickjsSql };
let count = 0;
for (const [group, cases] of CASES) {
  for (const [claim, run] of cases) {
    let problem: string | undefined;
    const store = openStore(deps, `${folder}/${count++}.db`);
    try {
      run({ deps, store });
    } catch (error) {
      problem = String(error);
    }
    try {
      store.db.close();
    } catch {
      // The case closed it itself.
    }
    sys.writeAll(1, encodeUtf8(`${JSON.stringify({ group, claim, problem })}\n`));
  }
}
setExitStatus(0);
