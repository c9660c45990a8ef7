/** The benchmark's driver as a program: a {@link Plan} as JSON on stdin, a {@link Run} as JSON on stdout. */
import { quickjsRaw, quickjsSys, setExitStatus } from "../../shared/sys/quickjs.ts";
import { decodeUtf8, encodeUtf8 } from "../../shared/sys/sys.ts";
import { type Plan, runPlan } from "./driver.ts";

const plan = JSON.parse(decodeUtf8(quickjsSys.readToEnd(0, 64 << 20))) as Plan;
quickjsSys.writeAll(1, encodeUtf8(JSON.stringify(runPlan(quickjsRaw, quickjsSys, plan))));
setExitStatus(0);
