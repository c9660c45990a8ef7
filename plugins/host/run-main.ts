/** What every plugin's main does with the engine: environment, stdin, stdout, log, exit status. */

import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { type Handlers, runPlugin } from "../../shared/cni/run-plugin.ts";
import { appendLog } from "../../shared/log/log.ts";
import { CLOCK_REALTIME } from "../../shared/sys/linux.ts";
import { openQuickjsSql, setExitStatus, quickjsSys as sys } from "../../shared/sys/quickjs.ts";
import { decodeUtf8, encodeUtf8, isErrno } from "../../shared/sys/sys.ts";
import type { PluginHost } from "../terway-ipam/commands.ts";

const MAX_STDIN_BYTES = 1 << 20;

export function runMain(plugin: string, handlersOf: (host: PluginHost) => Handlers): void {
  const env = sys.environ();
  const host: PluginHost = {
    sys,
    openSql: openQuickjsSql,
    env,
    log: (logDir, fields) => void appendLog(sys, logDir, plugin, sys.clock(CLOCK_REALTIME), fields),
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
      handlersOf(host),
    ),
  );
}
