/** What every plugin's main does with the engine: environment, stdin, stdout, log, exit status. */

import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { runPlugin } from "../../shared/cni/run-plugin.ts";
import { appendLog } from "../../shared/log/log.ts";
import { CLOCK_REALTIME } from "../../shared/sys/linux.ts";
import { openQuickjsSql, setExitStatus, setMain, quickjsSys as sys } from "../../shared/sys/quickjs.ts";
import { decodeUtf8, encodeUtf8, isErrno } from "../../shared/sys/sys.ts";
import type { Plugin, PluginHost } from "./plugin.ts";

const MAX_STDIN_BYTES = 1 << 20;

/** Leaves the plugin's main for the executable to call: once its memory is a snapshot, in every process anew. */
export function runMain(name: string, plugin: Plugin): void {
  setMain(() => main(name, plugin));
}

function main(name: string, plugin: Plugin): void {
  const env = sys.environ();
  const host: PluginHost = {
    sys,
    openSql: openQuickjsSql,
    env,
    log: (logDir, fields) => void appendLog(sys, logDir, name, sys.clock(CLOCK_REALTIME), fields),
  };
  setExitStatus(
    runPlugin(
      {
        env,
        readStdin() {
          try {
            return decodeUtf8(sys.readToEnd(0, MAX_STDIN_BYTES));
          } catch (error) {
            if (!isErrno(error, "EFBIG")) throw error;
            throw new CniFailure(
              CODE.io,
              `the network configuration on stdin is longer than ${MAX_STDIN_BYTES} bytes`,
              "check what the runtime sends",
              error,
            );
          }
        },
        writeStdout: (text) => sys.writeAll(1, encodeUtf8(text)),
      },
      {
        add: (call) => plugin.add(call, host),
        del: (call) => plugin.del(call, host),
        check: (call) => plugin.check(call, host),
        gc: (call) => plugin.gc(call, host),
        status: (call) => plugin.status(call, host),
      },
    ),
  );
}
