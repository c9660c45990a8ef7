/** Runs the contract inside the plugins' engine: CONTRACT_FOLDER names an empty folder; prints one line per case. */
import { CONTRACT } from "./contract.ts";
import { openQuickjsSql, quickjsRaw, quickjsSys, setExitStatus } from "./quickjs.ts";
import { encodeUtf8 } from "./sys.ts";

const folder = quickjsSys.environ().CONTRACT_FOLDER ?? "";
const context = { raw: quickjsRaw, sys: quickjsSys, openSql: openQuickjsSql, folder };
for (const [claim, run] of CONTRACT) {
  let problem: string | undefined;
  try {
    run(context);
  } catch (error) {
    problem = String(error);
  }
  quickjsSys.writeAll(1, encodeUtf8(`${JSON.stringify({ claim, problem })}\n`));
}
setExitStatus(0);
