/**
 * NetworkPolicy in the agent: compiles what a folder of manifests says, writes it into the store for the plugins, and
 * programs the kernel by difference. Without a folder it keeps in the kernel what the store holds.
 */
import { type FSWatcher, watch } from "node:fs";
import { createNftMonitor } from "../../shared/netlink/nft/monitor.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import { NETLINK_NETFILTER } from "../../shared/netlink/uapi/netlink.ts";
import { NFNLGRP_NFTABLES } from "../../shared/netlink/uapi/nf-tables.ts";
import { parseMessages } from "../../shared/netlink/wire/reader.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { kernelLacks } from "../../shared/policy/kernel-lacks.ts";
import { POLICY_TABLE } from "../../shared/policy/names.ts";
import { removePolicy } from "../../shared/policy/program.ts";
import { AF_NETLINK, MSG_DONTWAIT, SOCK_NONBLOCK, SOCK_RAW } from "../../shared/sys/linux.ts";
import { nodeSys as sys, watchFd } from "../../shared/sys/node.ts";
import { isErrno } from "../../shared/sys/sys.ts";
import { PolicyCompiler } from "../policy/compiler.ts";
import { attachedPods, createEnforcer } from "../policy/enforcer.ts";
import { removeInside, throwAll } from "../policy/inside.ts";
import { describeUnknown, type LostOwners, restoreOwners } from "../policy/lost-owners.ts";
import type { Labels } from "../policy/objects.ts";
import type { Refresh } from "../policy/source-dir.ts";
import { listLocalPods, setPolicyOff } from "../store/policy.ts";
import { type AgentContext, journal } from "./context.ts";
import { logDrops } from "./drop-log.ts";
import { type Manifests, waitsForMount } from "./manifests.ts";

export interface PolicyOptions {
  /** Absent: what `terway-cli policy sync` wrote into the store is kept in force. */
  readonly manifests: Manifests | undefined;
  readonly nodeName: string;
  /** Of this node's ENIs, for isolation domains. */
  readonly eniTags: Labels;
  /** End connections that a changed policy no longer allows. */
  readonly cutEstablished: boolean;
  /** Tell what was dropped, with the names of pods. Absent: as the kernel's table is found, and nobody listens. */
  readonly logDrops?: boolean;
}

const STORE_SETTLE_MS = 50;
/** A hand that flushes and adds again is seen once; until then packets pass unjudged. */
const MEND_AFTER_MS = 20;
const MEND_EVERY_MS = 60_000;
const RETRY_MS = 5000;
/** The chained plugin changes the table at every ADD and DEL. */
const PLUGIN = "terway-policy";

type Context = Pick<AgentContext, "store" | "log">;

export interface PolicyAgent {
  stop(): void;
}

/** A node without nftables keeps its pods' addresses; that policies are not in force is said as loud as can be. */
export function startPolicy(ctx: Context, options: PolicyOptions): PolicyAgent {
  try {
    return start(ctx, options);
  } catch (error) {
    ctx.log("error", `NetworkPolicy is not enforced: ${(error as Error).message}`);
    return { stop: () => undefined };
  }
}

/**
 * NetworkPolicy is switched off: nobody would bring what an agent of before left in the kernel to what holds now, so it
 * goes, and terway-policy adds nothing. What the store has stays, for when it is switched on again.
 */
export function endPolicy(ctx: Context): void {
  const gone: string[] = [];
  const attempt = (step: () => void) => {
    try {
      step();
    } catch (error) {
      ctx.log("error", `switching NetworkPolicy off: ${(error as Error).message}`);
    }
  };
  // First: an ADD that comes later reads it, and one under way finds no table and looks again.
  attempt(() => setPolicyOff(ctx.store.db, true));
  attempt(() => {
    if (removeFromNode()) gone.push("on the node");
  });
  attempt(() => gone.push(...removeInside(ctx.store).map((pod) => `in pod ${pod}`)));
  if (gone.length === 0) {
    ctx.log("info", "NetworkPolicy is switched off");
    return;
  }
  const where = gone.slice(0, 5).join(", ");
  ctx.log(
    "warn",
    `NetworkPolicy is switched off: its rules were removed ${where}; new pods are under none either, whether terway-policy is in the conflist or not`,
    { count: gone.length },
  );
  attempt(() => journal(ctx, "policy-off", "ok", `rules removed ${where}`));
}

function removeFromNode(): boolean {
  let nft: NftSocket | undefined;
  try {
    nft = openNft(sys);
    return removePolicy(nft);
  } catch (error) {
    // A kernel without netfilter or nftables has no table.
    if (isErrno(error, "EPROTONOSUPPORT", "EAFNOSUPPORT")) return false;
    if (error instanceof NetlinkError && kernelLacks(error) !== error) return false;
    throw error;
  } finally {
    nft?.close();
  }
}

function start(ctx: Context, options: PolicyOptions): PolicyAgent {
  const { store } = ctx;
  setPolicyOff(store.db, false);
  const nft = openNft(sys);
  tellOfLost(ctx, restoreOwners(store, nft));
  const enforcer = createEnforcer(store, nft, {
    cutEstablished: options.cutEstablished,
    ...(options.logDrops ? { logDrops: true } : {}),
  });
  const compiler = new PolicyCompiler({
    nodeName: options.nodeName,
    eniTags: options.eniTags,
    revision: enforcer.compiled?.revision ?? 0,
  });
  let accepted = false;
  let brought: CompiledPolicy | undefined;
  /** Pods' own namespaces have not got it yet. */
  let isRefused = false;
  let retry: NodeJS.Timeout | undefined;

  function take(refresh: Refresh): void {
    compiler.apply(refresh.events);
    if (!accepted) {
      if (refresh.unsettled) return; // the folder is looked at again very soon
      const why = reasonToWait(refresh);
      if (why !== undefined) {
        ctx.log("error", `policies stay as they were before the start ${why}`);
        return;
      }
    }
    accepted = true;
    guarded(step);
  }

  /** Nobody remembers the last good form of what is faulty: the compiled policy of before the start is that form. */
  function reasonToWait(refresh: Refresh): string | undefined {
    const { compiled } = enforcer;
    if (compiled === undefined) return undefined;
    const dir = options.manifests?.dir ?? "";
    if (refresh.broken || refresh.faulty.size > 0) return `until ${dir} has no fault`;
    return waitsForMount(refresh, dir, compiled.pods.length + compiled.profiles.length > 0);
  }

  function report(why: string, changed: readonly string[]): void {
    if (changed.length === 0) return;
    ctx.log("warn", `policy put right (${why}): ${changed.slice(0, 5).join("; ")}`, { count: changed.length });
    journal(ctx, "policy-repair", "ok", `${why}: ${changed.slice(0, 5).join("; ")}`);
  }

  function step(): void {
    if (!accepted) {
      if (options.manifests === undefined && enforcer.reread()) mend();
      return;
    }
    compiler.setAttached(attachedPods(store));
    const compiled = compiler.compile();
    if (compiled === brought && !enforcer.keepsEnded && !isRefused) return;
    const isNew = compiled !== brought;
    brought = undefined; // unless it succeeds
    const { rows, changed, failures } = enforcer.bring(compiled, compiler.objects.size > 0);
    brought = compiled;
    isRefused = failures.length > 0;
    if (isNew || rows > 0 || changed.length > 0)
      ctx.log("info", `policy revision ${compiled.revision}: ${changed.length} changes in the kernel`, {
        pods: compiled.pods.length,
        profiles: compiled.profiles.length,
        rows,
      });
    throwAll(failures);
  }

  /** A failure leaves what is in force, is told, and is tried again. */
  function guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      ctx.log("error", `policy: ${(error as Error).message}`);
      retry ??= setTimeout(() => {
        retry = undefined;
        guarded(() => {
          step();
          mend("tried again");
        });
      }, RETRY_MS);
    }
  }

  const storeChanged = debounced(STORE_SETTLE_MS, () => guarded(step));
  const storeWatch = watchWal(`${store.path}-wal`, storeChanged.soon);
  options.manifests?.subscribe(take);
  /** Without it policies work all the same. */
  function startDropLog(): () => void {
    const nameOf = (address: string) =>
      compiler.podAt(address) ??
      listLocalPods(store.db).flatMap((p) => (p.addresses.includes(address) ? `${p.namespace}/${p.name}` : []))[0];
    try {
      return logDrops((line) => ctx.log("info", line), nameOf);
    } catch (error) {
      ctx.log("error", `drops are counted, not logged: ${(error as Error).message}`);
      return () => undefined;
    }
  }

  /** @param why Absent: it was to be expected, and nobody need be told. */
  function mend(why?: string): void {
    // `policy sync` may be who changed the kernel, and has written the store before.
    if (options.manifests === undefined) enforcer.reread();
    const { changed, failures } = enforcer.mend();
    if (why !== undefined) report(why, changed);
    throwAll(failures);
  }

  let culprit = "";
  const foreign = debounced(MEND_AFTER_MS, () => guarded(() => mend(`changed by ${culprit}`)));
  const stopWatch = watchForeignChanges((who) => {
    culprit = who;
    foreign.soon();
  });
  const stopDrops = options.logDrops ? startDropLog() : () => undefined;
  const periodic = setInterval(() => guarded(() => mend("periodic check")), MEND_EVERY_MS);
  guarded(() => {
    step();
    mend();
  });
  return {
    stop() {
      clearTimeout(retry);
      clearInterval(periodic);
      storeChanged.stop();
      foreign.stop();
      storeWatch?.close();
      stopWatch();
      stopDrops();
      nft.close();
    },
  };
}

function tellOfLost(ctx: Context, { restored, unknown }: LostOwners): void {
  if (restored.length > 0)
    ctx.log("warn", `the store did not know whose these are, the runtime did: ${restored.join(" ")}`);
  if (unknown.length > 0) ctx.log("error", describeUnknown(unknown));
}

/** Several calls within `ms` are one; further ones do not put it off. */
function debounced(ms: number, work: () => void): { soon(): void; stop(): void } {
  let timer: NodeJS.Timeout | undefined;
  return {
    soon() {
      timer ??= setTimeout(() => {
        timer = undefined;
        work();
      }, ms);
    },
    stop: () => clearTimeout(timer),
  };
}

/** Every commit writes the WAL: pods come and go, or `terway-cli policy sync` has run. */
function watchWal(path: string, onChange: () => void): FSWatcher | undefined {
  try {
    const watcher = watch(path, onChange);
    watcher.on("error", () => undefined); // the periodic look remains
    return watcher;
  } catch {
    return undefined;
  }
}

/** Calls back when our table was changed by neither us nor the chained plugin, with the name of who it was. */
function watchForeignChanges(onChange: (who: string) => void): () => void {
  const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_NETFILTER);
  sys.bindNetlink(fd, 1 << (NFNLGRP_NFTABLES - 1));
  const monitor = createNftMonitor();
  const buffer = new Uint8Array(256 << 10);
  const stop = watchFd(fd, () => {
    for (;;) {
      let length: number;
      try {
        length = sys.recv(fd, buffer, MSG_DONTWAIT);
      } catch (error) {
        if (!isErrno(error, "ENOBUFS")) return;
        onChange("somebody (the kernel's messages were lost)");
        continue;
      }
      for (const { tables, pid, program: name } of monitor(parseMessages(buffer.subarray(0, length))))
        if (tables.has(POLICY_TABLE.table) && pid !== process.pid && name !== PLUGIN) onChange(`${name} (pid ${pid})`);
    }
  });
  return () => {
    stop();
    sys.close(fd);
  };
}
